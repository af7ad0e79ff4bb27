#include "cache_kind.hpp"

#include "status.hpp"

#include <algorithm>
#include <cstring>

namespace kvmerge {

uint64_t sum_of(const char * bytes, size_t n) {
    uint64_t sum = 1469598103934665603u;
    for (size_t i = 0; i < n; i += 8) {
        uint64_t word = 0;
        std::memcpy(&word, bytes + i, std::min<size_t>(8, n - i));
        sum = (sum ^ word) * 1099511628211u;
        sum ^= sum >> 29;
    }
    return sum;
}

Kind kind_of(const kvmerge_cache & cache) {
    Kind kind = {};
    kvmerge_cache_info info;
    pass(kvmerge_observer_cache_info(cache.observer, &info));
    const CellTable::Shape & shape = cache.table.shape();
    kind.n_layer = shape.n_layer, kind.n_head = shape.n_head, kind.n_head_kv = shape.n_head_kv;
    kind.head_dim_k = info.head_dim_k, kind.head_dim_v = info.head_dim_v, kind.v_transposed = info.v_transposed;
    std::memcpy(kind.type_k, info.type_k, sizeof kind.type_k);
    std::memcpy(kind.type_v, info.type_v, sizeof kind.type_v);
    const kvmerge_cache_params & p = cache.params;
    kind.n_cells = p.n_cells, kind.position_range = p.position_range, kind.pivot_frame = p.pivot_frame;
    kind.record_fates = p.record_fates;
    kind.mass_decay = p.mass_decay;
    if (const std::vector<float> & c = cache.calibration; !c.empty()) {
        kind.calibration = sum_of(reinterpret_cast<const char *>(c.data()), c.size() * sizeof(float));
    }
    in_observer(cache.observer, [&](const kvmerge_observer & o) {
        kind.observe = o.params.observe & ~KVMERGE_OBSERVE_STOP, kind.bias = o.params.bias;
        kind.mass_power = o.params.mass_power, kind.query_decay = o.params.query_decay;
    });
    return kind;
}

void require_same(const Kind & saved, const Kind & own) {
    const auto same = [](const char * what, double a, double b) {
        if (a != b) {
            throw Error(KVMERGE_E_ARGUMENT,
                        text("the state is of another kind of cache: it has %s %g, this one %g", what, a, b));
        }
    };
    same("layers:", saved.n_layer, own.n_layer);
    same("heads:", saved.n_head, own.n_head);
    same("KV heads:", saved.n_head_kv, own.n_head_kv);
    same("elements a key:", saved.head_dim_k, own.head_dim_k);
    same("elements a value:", saved.head_dim_v, own.head_dim_v);
    same("values transposed (flash attention off):", saved.v_transposed, own.v_transposed);
    if (std::memcmp(saved.type_k, own.type_k, sizeof own.type_k) != 0 ||
        std::memcmp(saved.type_v, own.type_v, sizeof own.type_v) != 0) {
        throw Error(KVMERGE_E_ARGUMENT, text("the state has cells of type %.16s and %.16s, this cache %.16s and %.16s",
                                             saved.type_k, saved.type_v, own.type_k, own.type_v));
    }
    same("cells that stay:", saved.n_cells, own.n_cells);
    same("a position range of", saved.position_range, own.position_range);
    same("the observed statistics", saved.observe, own.observe);
    same("the bias mode", saved.bias, own.bias);
    same("a pivot_frame of", saved.pivot_frame, own.pivot_frame);
    same("a record of fates:", saved.record_fates, own.record_fates);
    same("a mass power of", saved.mass_power, own.mass_power);
    same("a query decay of", saved.query_decay, own.query_decay);
    same("a mass decay of", saved.mass_decay, own.mass_decay);
    if (saved.calibration != own.calibration) {
        throw Error(KVMERGE_E_ARGUMENT, "the state is of a cache with another calibration, or with none");
    }
}

} // namespace kvmerge
