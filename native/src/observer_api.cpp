// The functions of kvmerge.h on an observer. They check handles and arguments, and nothing is thrown across the border.
#include "decay.hpp"
#include "llama_graph.hpp"
#include "observer.hpp"
#include "status.hpp"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <deque>
#include <memory>
#include <string>
#include <vector>

namespace {

using namespace kvmerge;

void check_params(const kvmerge_observer_params & p) {
    constexpr double MOST = 1099511627776; // 2^40 elements: more than any memory holds, and no product overflows
    require(p.n_layer > 0 && p.n_layer <= 65536, "n_layer must be 1..65536");
    require(p.n_head > 0 && p.n_head <= 65536 && p.n_head_kv > 0 && p.n_head % p.n_head_kv == 0,
            "n_head must be 1..65536, and a multiple of n_head_kv");
    require(p.n_cells > 0 && p.n_tokens > 0, "n_cells and n_tokens must be positive");
    require(double(p.n_layer) * p.n_head_kv * p.n_cells <= MOST, "n_layer * n_head_kv * n_cells must be at most 2^40");
    require(double(p.n_layer) * p.n_head * p.n_tokens <= MOST, "n_layer * n_head * n_tokens must be at most 2^40");
    constexpr int both = KVMERGE_OBSERVE_STOP | KVMERGE_OBSERVE_CAPTURE;
    require(p.observe >= 0 && p.observe < 64 && (p.observe & both) != both,
            "observe must be KVMERGE_OBSERVE_* flags, and not both STOP and CAPTURE");
    require(p.bias >= KVMERGE_BIAS_NONE && p.bias <= KVMERGE_BIAS_EXACT, "bias must be one of KVMERGE_BIAS_*");
    require(p.mass_power == 1 || p.mass_power == 1.5f || p.mass_power == 2, "mass_power must be 1, 1.5 or 2");
    require(p.mass_queries >= 0 && p.mass_sample >= 0, "mass_queries and mass_sample must not be negative");
    require(p.query_decay >= 0 && p.query_decay <= 1, "query_decay must be 0..1");
    require(p.n_threads > 0 && p.n_threads <= 1024, "n_threads must be 1..1024");
    require(p.device == KVMERGE_DEVICE_CPU || p.device == KVMERGE_DEVICE_CUDA,
            "device must be one of KVMERGE_DEVICE_*");
    require(p.ggml.tensor_get && p.ggml.tensor_set && p.ggml.buffer_is_host, "ggml entry points are missing");
    require(p.bias != KVMERGE_BIAS_FOLDED || (p.ridge > 0 && std::isfinite(p.ridge)), "ridge must be positive");
}

int64_t nanos_since(std::chrono::steady_clock::time_point start) {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start).count();
}

// Throws an error with a text of its own: a copy would share it with the original, which another thread may free.
[[noreturn]] void throw_anew(const Error & error) {
    throw Error(error.status, std::string(error.what()));
}

std::unique_ptr<kvmerge_observer> make(const kvmerge_observer_params & params) {
    kvmerge_observer_params p = params;
    check_params(p);
    auto made = std::make_unique<kvmerge_observer>();
    if (p.bias == KVMERGE_BIAS_FOLDED) {
        p.observe |= KVMERGE_OBSERVE_QUERIES;
    }
    if (p.observe & KVMERGE_OBSERVE_QUERY_HEADS) {
        p.observe |= KVMERGE_OBSERVE_QUERIES;
        if (p.device != KVMERGE_DEVICE_CPU) {
            throw Error(KVMERGE_E_UNSUPPORTED,
                        "KVMERGE_OBSERVE_QUERY_HEADS is the CPU's work: give KVMERGE_DEVICE_CPU");
        }
    }
    made->params = p;
    made->device = p.device == KVMERGE_DEVICE_CUDA ? &cuda_device() : &host_device();
    made->layers.resize(size_t(p.n_layer));
    for (int32_t i = 0; i < p.n_layer; i++) {
        const int32_t number = p.layers ? p.layers[i] : i;
        require(number >= 0 && (i == 0 || number > made->numbers.back()), "layers must be ascending numbers of layers");
        made->numbers.push_back(number);
    }
    made->params.layers = p.layers ? made->numbers.data() : nullptr;
    return made;
}

// Throws STATE.
void require_no_cache_inside(const kvmerge_observer & o) {
    if (*o.in_caches > 0) {
        throw Error(KVMERGE_E_STATE, "another thread is inside a call with a cache of this observer");
    }
}

// A layer, after all of its queries that were seen are in its moments. Others may be inside the observer: `mirrors` is
// held. Throws STATE where none were seen.
kvmerge_observer::Layer & all_queries_of(kvmerge_observer & o, int layer) {
    auto & l = o.layers[size_t(layer)];
    o.add_captured();
    o.add_waiting_queries(l);
    if (!(l.query_weight > 0)) {
        throw Error(KVMERGE_E_STATE,
                    text("layer %d: no queries observed; observe them and decode something first", layer));
    }
    return l;
}

void remove_group(Handles<kvmerge_observer>::Use & group) {
    const std::vector<kvmerge_observer *> handles = group.object().group->handles();
    std::deque<Handles<kvmerge_observer>::Use> inside;
    for (kvmerge_observer * const handle : handles) { // all or none
        require_no_cache_inside(observers().entered(inside.emplace_back(observers(), handle, Access::ALONE)));
    }
    for (auto & use : inside) {
        observers().remove(use);
    }
    observers().remove(group);
}

} // namespace

namespace kvmerge {

Handles<kvmerge_observer> & observers() {
    static Handles<kvmerge_observer> handles(1, 0, "observer");
    return handles;
}

} // namespace kvmerge

kvmerge_block_stats kvmerge::finished_block(kvmerge_observer & o, kvmerge_observer * handle) {
    if (observers().missed(handle)) {
        throw Error(KVMERGE_E_STATE, "another thread was inside a call with this observer while llama.cpp decoded");
    }
    if (o.error) {
        throw_anew(*o.error);
    }
    o.finish_rewriting();
    const auto start = std::chrono::steady_clock::now();
    o.look_at_newest();
    o.add_captured();
    o.add_waiting_queries();
    o.nanos += nanos_since(start);
    kvmerge_block_stats stats = {};
    stats.n_tokens = int32_t(o.token_cell.size());
    stats.token_cell = o.token_cell.data();
    for (const auto & l : o.layers) {
        stats.n_layer_seen += stats.n_tokens > 0 && l.tokens_seen == stats.n_tokens;
    }
    stats.observe_nanos = o.nanos;
    return stats;
}

extern "C" {

kvmerge_status kvmerge_observer_create(const kvmerge_observer_params * params, kvmerge_observer ** out) {
    return guarded("kvmerge_observer_create", [&] {
        require(params && out, "params or out is null");
        *out = observers().add(make(*params));
    });
}

kvmerge_status kvmerge_observer_create_group(const kvmerge_observer_params * params, int32_t n_streams,
                                             kvmerge_observer ** group, kvmerge_observer ** streams) {
    return guarded("kvmerge_observer_create_group", [&] {
        require(params && group && streams, "params, group or streams is null");
        require(n_streams > 0 && n_streams <= 256, "n_streams must be 1..256");
        auto whole = make(*params);
        std::vector<kvmerge_observer *> handles;
        try {
            for (int32_t i = 0; i < n_streams; i++) {
                auto one = make(*params);
                one->in_group = true;
                one->stream = i;
                one->n_streams = n_streams;
                handles.push_back(nullptr);
                handles.back() = observers().add(std::move(one));
            }
            whole->group = std::make_unique<Streams>(handles, whole->numbers, params->ggml);
            *group = observers().add(std::move(whole));
        } catch (...) {
            for (kvmerge_observer * const handle : handles) {
                if (handle) {
                    observers().remove(handle);
                }
            }
            throw;
        }
        std::copy(handles.begin(), handles.end(), streams);
    });
}

kvmerge_status kvmerge_observer_free(kvmerge_observer * observer) {
    return guarded("kvmerge_observer_free", [&] {
        Handles<kvmerge_observer>::Use use(observers(), observer, Access::ALONE);
        const kvmerge_observer & o = observers().entered(use);
        require(!o.in_group, "this handle is a stream's: free its group");
        if (o.group) {
            remove_group(use);
        } else {
            require_no_cache_inside(o);
            observers().remove(use);
        }
    });
}

bool kvmerge_eval_callback(struct ggml_tensor * tensor, bool ask, void * handle) {
    if (tensor && ask && is_capture(tensor)) { // of a graph that is used again: perhaps by nobody's observer any more
        release(tensor);
    }
    if (!tensor || (ask && !may_want(tensor))) {
        return !ask; // asks for nothing, and lets the graph go on
    }
    auto * const observer = static_cast<kvmerge_observer *>(handle);
    const Handles<kvmerge_observer>::Use use(observers(), observer, Access::ALONE);
    if (use.status() != KVMERGE_OK) {
        if (use.status() == KVMERGE_E_STATE) {
            observers().miss(observer);
            settle_devices(); // a rewriting that this observer would have waited for
        }
        return !ask;
    }
    kvmerge_observer & o = use.object();
    return o.group ? o.group->called(tensor, ask) : o.called(tensor, ask);
}

kvmerge_status kvmerge_observer_begin(kvmerge_observer * observer) {
    return on_observer("kvmerge_observer_begin", observer, Access::ALONE, [&](kvmerge_observer & o) {
        if (o.error) {
            o.captured.clear();
            o.captured_on_gpu.clear();
        }
        o.add_captured(false);
        o.add_waiting_queries();
        o.captured_on_gpu.forget_missing();
        const double keep = decay_over(o.params.query_decay, int(o.token_cell.size()));
        o.token_cell.clear();
        o.positions.clear();
        o.windows.begin();
        o.ubatch_start = 0;
        o.nanos = 0;
        if (!o.another_context) { // that stays an error
            o.error.reset();
        }
        o.asked_for = nullptr;
        if (observers().missed(observer)) {
            std::for_each(o.layers.begin(), o.layers.end(), [&](auto & l) { o.distrust(l); });
        }
        observers().forget_missed(observer);
        for (auto & l : o.layers) {
            l.tokens_seen = 0;
            l.query_keep = float(l.query_keep * keep);
            if (l.mass.size()) {
                l.mass.zero();
            }
        }
    });
}

kvmerge_status kvmerge_observer_forget(kvmerge_observer * observer) {
    return on_observer("kvmerge_observer_forget", observer, Access::ALONE, [&](kvmerge_observer & o) {
        o.captured.clear();
        o.captured_on_gpu.clear();
        o.captured_on_gpu.forget_missing();
        o.token_cell.clear();
        o.positions.clear();
        o.windows.forget();
        o.ubatch_start = 0;
        if (!o.another_context) {
            o.error.reset();
        }
        o.asked_for = nullptr;
        for (auto & l : o.layers) {
            l.n_queries = 0; // begin has added the others
            l.tokens_seen = 0;
            if (l.mass.size()) {
                l.mass.zero();
            }
        }
    });
}

kvmerge_status kvmerge_observer_stats(kvmerge_observer * observer, kvmerge_block_stats * out) {
    return on_observer("kvmerge_observer_stats", observer, Access::ALONE, [&](kvmerge_observer & o) {
        require(out, "out is null");
        kvmerge_block_stats stats = finished_block(o, observer);
        if (o.layers[0].k.tensor()) { // before that, the sizes are not known to be a context's
            o.collect();
        }
        if (!o.mass.empty()) {
            for (float m : o.mass) {
                if (!std::isfinite(m)) {
                    throw Error(KVMERGE_E_NUMERIC, "the attention has NaN or infinite entries");
                }
            }
            stats.mass = o.mass.data();
        }
        stats.entropy = o.entropy.empty() ? nullptr : o.entropy.data();
        *out = stats;
    });
}

kvmerge_status kvmerge_observer_cache_info(kvmerge_observer * observer, kvmerge_cache_info * out) {
    return on_observer("kvmerge_observer_cache_info", observer, Access::SHARED, [&](kvmerge_observer & o) {
        require(out, "out is null");
        if (o.error) {
            throw_anew(*o.error);
        }
        kvmerge_cache_info info = {};
        const auto name = [](const CellTensor & t, char(&to)[16]) {
            std::snprintf(to, sizeof to, "%s", t.type_name());
        };
        for (size_t i = 0; i < o.layers.size(); i++) {
            const auto & l = o.layers[i];
            if (!l.k.tensor() || !l.v.tensor()) {
                throw Error(
                    KVMERGE_E_STATE,
                    text("layer %zu: no KV cache seen; decode something first, and use a model whose every layer has "
                         "an ordinary KV cache",
                         i));
            }
            info.bytes += l.k.bytes() + l.v.bytes();
        }
        for (const auto & other : o.other_bytes) {
            info.bytes += other.second;
        }
        const auto & l = o.layers[0];
        info.n_cells = l.k.n_cells();
        info.head_dim_k = l.k.dim();
        info.head_dim_v = l.v.dim();
        info.v_transposed = l.v.transposed();
        std::snprintf(info.device, sizeof info.device, "%s", l.k.device().name);
        name(l.k, info.type_k);
        name(l.v, info.type_v);
        *out = info;
    });
}

kvmerge_status kvmerge_rotation(kvmerge_observer * observer, int32_t layer, kvmerge_key_rotation * out,
                                double * frequency) {
    return on_observer("kvmerge_rotation", observer, Access::SHARED, [&](kvmerge_observer & o) {
        require(layer >= 0 && layer < o.params.n_layer, "no such layer");
        require(out, "out is null");
        const auto & l = o.layers[layer];
        if (!l.k.tensor()) {
            throw Error(KVMERGE_E_STATE, text("layer %d: no KV cache seen; decode something first", layer));
        }
        *out = {l.rope.n_rot, l.rope.neox, l.rope.hadamard};
        if (frequency && l.rope.n_rot > 0) {
            o.finish_rewriting();
            const NothingLost sure(l.k.device());
            l.rope.freq.download(frequency, size_t(l.rope.n_rot) / 2);
            sure.check();
        }
    });
}

kvmerge_status kvmerge_query_moments(kvmerge_observer * observer, int32_t layer, int32_t kv_head, float * mean,
                                     float * second) {
    return on_observer("kvmerge_query_moments", observer, Access::SHARED, [&](kvmerge_observer & o) {
        require(layer >= 0 && layer < o.params.n_layer, "no such layer");
        require(kv_head >= 0 && kv_head < o.params.n_head_kv, "no such KV head");
        require(mean && second, "mean or second is null");
        o.finish_rewriting();
        const std::lock_guard<std::mutex> lock(o.mirrors);
        auto & l = all_queries_of(o, layer);
        const size_t dim = size_t(l.k.dim());
        const float inverse = float(1 / l.query_weight);
        const NothingLost sure(*l.stats_device);
        l.query_sum.download(mean, dim, kv_head * dim);
        l.query_second.download(second, dim * dim, kv_head * dim * dim);
        sure.check();
        std::for_each(mean, mean + dim, [&](float & x) { x *= inverse; });
        std::for_each(second, second + dim * dim, [&](float & x) { x *= inverse; });
    });
}

kvmerge_status kvmerge_query_head_moments(kvmerge_observer * observer, int32_t layer, int32_t head, float * mean,
                                          float * second) {
    return on_observer("kvmerge_query_head_moments", observer, Access::SHARED, [&](kvmerge_observer & o) {
        require(layer >= 0 && layer < o.params.n_layer, "no such layer");
        require(head >= 0 && head < o.params.n_head, "no such query head");
        require(mean && second, "mean or second is null");
        if (!o.observes(KVMERGE_OBSERVE_QUERY_HEADS)) {
            throw Error(KVMERGE_E_STATE, "query heads are not observed: ask for KVMERGE_OBSERVE_QUERY_HEADS");
        }
        o.finish_rewriting();
        const std::lock_guard<std::mutex> lock(o.mirrors);
        const auto & l = all_queries_of(o, layer);
        if (l.scale == 0) {
            throw Error(KVMERGE_E_STATE, text("layer %d: the scale of its attention is not known before a graph has "
                                              "run; decode something first",
                                              layer));
        }
        const size_t dim = size_t(l.k.dim());
        const float scale = float(l.scale * o.heads_per_kv() / l.query_weight);
        const float * const sum = l.head_sum.data() + size_t(head) * dim;
        const float * const products = l.head_second.data() + size_t(head) * dim * dim;
        std::transform(sum, sum + dim, mean, [&](float x) { return x * scale; });
        std::transform(products, products + dim * dim, second, [&](float x) { return x * scale * l.scale; });
    });
}

} // extern "C"
