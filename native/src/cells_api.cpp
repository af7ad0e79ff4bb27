// The functions of kvmerge.h that read and write cells. kvmerge_apply is in merge.cpp, planning in plan.cpp.
#include "cell_access.hpp"
#include "kernels/kernels.hpp"
#include "status.hpp"

#include <cmath>
#include <vector>

namespace kvmerge {

void require_cache(const kvmerge_observer & o, int layer) {
    if (!o.layers[layer].k.tensor() || !o.layers[layer].v.tensor()) {
        throw Error(KVMERGE_E_STATE, text("layer %d: no KV cache seen; decode something first", layer));
    }
}

void require_whole(const kvmerge_observer & o) {
    if (o.another_context) {
        throw Error(KVMERGE_E_STATE, "the observer has seen another llama_context: free it and make one for each");
    }
    require_untorn(o);
}

void require_untorn(const kvmerge_observer & o) {
    if (o.torn) {
        throw Error(KVMERGE_E_STATE,
                    "an earlier call failed while it wrote cells: what they hold is unknown, make the context anew");
    }
}

void require_distinct(const int32_t * cells, int32_t n, int n_cells) {
    std::vector<bool> seen(static_cast<size_t>(n_cells));
    for (int32_t i = 0; i < n; i++) {
        if (seen[size_t(cells[i])]) {
            throw Error(KVMERGE_E_ARGUMENT, text("cell %d is there twice", cells[i]));
        }
        seen[size_t(cells[i])] = true;
    }
}

void require_finite(const float * x, size_t n, const char * what) {
    for (size_t i = 0; x && i < n; i++) {
        if (!std::isfinite(x[i])) {
            throw Error(KVMERGE_E_NUMERIC, text("%s: element %zu is %g", what, i, double(x[i])));
        }
    }
}

CellView on_host(kvmerge_observer & o, CellTensor & cells) {
    o.finish_rewriting();
    require_untorn(o); // another thread may have met the failure since this call's arguments were looked at
    const std::lock_guard<std::mutex> lock(o.mirrors);
    return cells.on_host();
}

kvmerge_observer::Layer & cells_of(kvmerge_observer & o, int32_t layer, int32_t kv_head, const int32_t * cells,
                                   int32_t n) {
    require(layer >= 0 && layer < o.params.n_layer, "no such layer");
    require(kv_head >= 0 && kv_head < o.params.n_head_kv, "no such KV head");
    require(n >= 0 && (cells || n == 0), "n is negative, or cells is null");
    require_cache(o, layer);
    require_whole(o);
    auto & l = o.layers[layer];
    require(n <= l.k.n_cells(), "n is more than there are cells");
    for (int32_t i = 0; i < n; i++) {
        require(cells[i] >= 0 && cells[i] < l.k.n_cells(), "no such cell");
    }
    return l;
}

} // namespace kvmerge

using namespace kvmerge;

extern "C" {

kvmerge_status kvmerge_read_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head, const int32_t * cells,
                                  int32_t n, float * keys, float * values) {
    return on_observer("kvmerge_read_cells", observer, Access::SHARED, [&](kvmerge_observer & o) {
        auto & l = cells_of(o, layer, kv_head, cells, n);
        if (keys) {
            kernels().gather_cells({on_host(o, l.k), kv_head, cells, n, keys});
        }
        if (values) {
            kernels().gather_cells({on_host(o, l.v), kv_head, cells, n, values});
        }
    });
}

kvmerge_status kvmerge_project_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head, const int32_t * cells,
                                     const int32_t * position, int32_t n, const float * weight, float * product,
                                     float * length) {
    return on_observer("kvmerge_project_cells", observer, Access::SHARED, [&](kvmerge_observer & o) {
        auto & l = cells_of(o, layer, kv_head, cells, n);
        require(weight && ((position && product && length) || n == 0), "position, weight, product or length is null");
        require_finite(weight, size_t(l.k.dim()), "weight");
        std::vector<double> copied(size_t(l.rope.n_rot) / 2); // the frequencies may lie on a GPU
        const double * freq = l.rope.freq.data();
        o.finish_rewriting();
        if (&l.k.device() != &host_device() && !copied.empty()) {
            const NothingLost sure(l.k.device());
            l.rope.freq.download(copied.data(), copied.size());
            sure.check();
            freq = copied.data();
        }
        kernels().project_cells({on_host(o, l.k), on_host(o, l.v), kv_head, cells, position, n, weight, l.rope.n_rot,
                                 l.rope.neox, freq, l.rope.hadamard, product, length});
    });
}

kvmerge_status kvmerge_write_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head, const int32_t * cells,
                                   int32_t n, const float * keys, const float * values) {
    return on_observer("kvmerge_write_cells", observer, Access::ALONE, [&](kvmerge_observer & o) {
        auto & l = cells_of(o, layer, kv_head, cells, n);
        require_distinct(cells, n, l.k.n_cells());
        require_finite(keys, size_t(n) * l.k.dim(), "keys");
        require_finite(values, size_t(n) * l.v.dim(), "values");
        o.finish_rewriting();
        if (keys) { // memory for what a backend's cells are worked on in, before the first is written
            l.k.on_host();
        }
        if (values) {
            l.v.on_host();
        }
        o.add_captured_before_writing(); // with the keys as they are
        forget(l, kv_head, cells, size_t(n));
        Writing writing(o);
        if (keys) {
            l.k.write(kv_head, cells, n, keys);
        }
        if (values) {
            l.v.write(kv_head, cells, n, values);
        }
        writing.done();
    });
}

} // extern "C"
