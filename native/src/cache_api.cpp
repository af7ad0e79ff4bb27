// The functions of kvmerge.h on a cache. They check handles and arguments, and nothing is thrown across the border.
#include "cache.hpp"
#include "llama_graph.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

namespace kvmerge {

Handles<kvmerge_cache> & caches() {
    static Handles<kvmerge_cache> handles(1, 1, "cache");
    return handles;
}

namespace {

void check(const kvmerge_cache_params & p, const kvmerge_observer & o, llama_context * context) {
    const kvmerge_llama & l = p.llama;
    require(l.decode && l.synchronize && l.n_ctx_seq && l.n_seq_max && l.n_batch && l.get_logits_ith && l.get_memory &&
                l.memory_seq_rm && l.memory_seq_pos_max && l.state_seq_get_size && l.state_seq_get_data &&
                l.state_seq_set_data,
            "llama.cpp's entry points are missing");
    require(p.n_cells == 0 || p.n_cells >= 2, "n_cells must be 2 and more, or 0");
    const int32_t largest = std::max(p.n_block, p.n_prompt_block);
    require(p.n_block > 0 && p.n_prompt_block >= 0 && largest <= o.params.n_tokens,
            "n_block must be 1 and n_prompt_block 0 at least, and both at most the observer's n_tokens");
    const int64_t wanted = int64_t(p.n_cells) + largest, there = l.n_ctx_seq(context);
    if (wanted > there || wanted > o.params.n_cells) {
        throw Error(KVMERGE_E_ARGUMENT,
                    text("n_cells and the larger of n_block and n_prompt_block are %lld, where the context has "
                         "%lld cells a sequence and the observer was made for %d",
                         static_cast<long long>(wanted), static_cast<long long>(there), o.params.n_cells));
    }
    if (o.params.n_cells - there >= CELL_PADDING) { // which observing would refuse, once the table has its memory
        throw Error(KVMERGE_E_ARGUMENT,
                    text("the observer was made for %d cells, where the context has %lld a sequence: make it for "
                         "llama_n_ctx_seq",
                         o.params.n_cells, static_cast<long long>(there)));
    }
    require(p.position_range == 0 || (p.n_cells > 0 && p.position_range >= p.n_cells),
            "position_range must be 0 or hold n_cells");
    require(p.position_range == 0 || !p.keep_newest, "a model with sliding windows has no position_range");
    require(p.mass_decay >= 0 && p.mass_decay <= 1, "mass_decay must be 0..1");
    require(p.recent_share >= 0 && p.recent_share <= 1, "recent_share must be 0..1");
    require(p.key_cost >= 0 && std::isfinite(p.key_cost), "key_cost must not be negative");
    require(p.sinks >= 0, "sinks must not be negative");
    require(p.largest_group >= 1, "largest_group must be positive");
    require(!p.calibration || (p.calibration_dim > 0 && p.calibration_dim <= 65536),
            "calibration_dim must be 1..65536");
}

// The row of a layer and KV head.
int pair_of(const kvmerge_cache & cache, int32_t layer, int32_t kv_head) {
    const CellTable::Shape & shape = cache.table.shape();
    require(layer >= 0 && layer < shape.n_layer, "no such layer");
    require(kv_head >= 0 && kv_head < shape.n_head_kv, "no such KV head");
    return layer * shape.n_head_kv + kv_head;
}

} // namespace

} // namespace kvmerge

using namespace kvmerge;

extern "C" {

kvmerge_status kvmerge_cache_defaults(kvmerge_cache_params * out) {
    return guarded("kvmerge_cache_defaults", [&] {
        require(out, "out is null");
        *out = {};
        out->pivot_frame = 1;
        out->mass_decay = .9;
        out->recent_share = .25;
        out->key_cost = 1.5;
        out->sinks = 4;
        out->largest_group = 8;
    });
}

kvmerge_status kvmerge_cache_create(const kvmerge_cache_params * params, kvmerge_observer * observer,
                                    struct llama_context * context, int32_t seq_id, kvmerge_cache ** out) {
    return guarded("kvmerge_cache_create", [&] {
        require(params && context && out, "params, context or out is null");
        require(seq_id >= 0, "seq_id must not be negative");
        const Handles<kvmerge_observer>::Use use(observers(), observer, Access::SHARED);
        const kvmerge_observer & o = observers().entered(use);
        require(!o.group, "this observer's handle is a group's: give a stream's");
        require(!o.in_group || seq_id == o.stream, "seq_id is not the observer's stream");
        check(*params, o, context);
        if (const uint32_t n_seq = params->llama.n_seq_max(context); uint32_t(seq_id) >= n_seq) {
            throw Error(KVMERGE_E_ARGUMENT, text("seq_id is %d, where llama_n_seq_max is %u", seq_id, n_seq));
        }
        auto made = std::make_unique<kvmerge_cache>(*params, o, observer, context, seq_id);
        const kvmerge_llama & llama = params->llama;
        require(llama.memory_seq_pos_max(llama.get_memory(context), seq_id) < 0, "the sequence is not empty");
        *out = caches().add(std::move(made));
    });
}

kvmerge_status kvmerge_cache_free(kvmerge_cache * cache) {
    return guarded("kvmerge_cache_free", [&] { caches().remove(cache); });
}

kvmerge_status kvmerge_cache_decode(kvmerge_cache * cache, const int32_t * tokens, int32_t n, const float ** logits) {
    return on_cache("kvmerge_cache_decode", cache, Access::ALONE, [&](kvmerge_cache & c) {
        require(tokens && n > 0, "tokens is null, or there are none");
        c.decode(tokens, n, logits);
    });
}

kvmerge_status kvmerge_cache_flush(kvmerge_cache * cache) {
    return on_cache("kvmerge_cache_flush", cache, Access::ALONE, [&](kvmerge_cache & c) {
        c.require_whole();
        c.settle();
        c.finish_rewriting();
    });
}

kvmerge_status kvmerge_cache_take(kvmerge_cache * cache, int32_t n_tokens, kvmerge_block_stats * stats) {
    return on_cache("kvmerge_cache_take", cache, Access::ALONE, [&](kvmerge_cache & c) {
        require(n_tokens > 0, "n_tokens must be positive");
        require(c.pending == 0, "kvmerge_cache_decode is in the midst of a block: call kvmerge_cache_flush first");
        c.take(n_tokens, stats);
    });
}

kvmerge_status kvmerge_cache_usage(kvmerge_cache * cache, kvmerge_cache_used * out) {
    return on_cache("kvmerge_cache_usage", cache, Access::SHARED, [&](kvmerge_cache & c) {
        require(out, "out is null");
        *out = {c.n_tokens + c.pending,
                c.table.used() + c.pending,
                c.table.pinned(),
                c.position + c.pending,
                c.is_over(),
                !c.broken.empty(),
                c.bytes()};
    });
}

kvmerge_status kvmerge_cache_columns(kvmerge_cache * cache, int32_t layer, int32_t kv_head,
                                     kvmerge_cache_column * out) {
    return on_cache("kvmerge_cache_columns", cache, Access::SHARED, [&](kvmerge_cache & c) {
        require(out, "out is null");
        c.require_whole();
        const size_t at = c.table.row(pair_of(c, layer, kv_head));
        const CellTable::Columns & of = c.columns();
        *out = {c.table.used(),       c.table.pinned(),    of.cell.data() + at,     of.position.data() + at,
                of.frame.data() + at, of.mass.data() + at, of.exposure.data() + at, of.entropy.data() + at,
                of.count.data() + at, of.prior.data() + at};
    });
}

kvmerge_status kvmerge_cache_stage(kvmerge_cache * cache, int32_t layer, int32_t kv_head, int32_t n,
                                   const int32_t * target, const float * weight, const float * value_weight) {
    return on_cache("kvmerge_cache_stage", cache, Access::SHARED, [&](kvmerge_cache & c) {
        c.require_due();
        c.table.stage(pair_of(c, layer, kv_head), {n, target, weight, value_weight});
    });
}

kvmerge_status kvmerge_cache_plan(kvmerge_cache * cache) {
    return on_cache("kvmerge_cache_plan", cache, Access::ALONE, [&](kvmerge_cache & c) { c.plan(); });
}

kvmerge_status kvmerge_cache_commit(kvmerge_cache * cache) {
    return on_cache("kvmerge_cache_commit", cache, Access::ALONE, [&](kvmerge_cache & c) { c.commit(); });
}

kvmerge_status kvmerge_cache_pin(kvmerge_cache * cache, int32_t n_fewest) {
    return on_cache("kvmerge_cache_pin", cache, Access::ALONE, [&](kvmerge_cache & c) { c.pin(n_fewest); });
}

kvmerge_status kvmerge_cache_clear(kvmerge_cache * cache) {
    return on_cache("kvmerge_cache_clear", cache, Access::ALONE, [&](kvmerge_cache & c) { c.clear(); });
}

kvmerge_status kvmerge_cache_fates(kvmerge_cache * cache, int32_t layer, int32_t kv_head, int32_t first, int32_t n,
                                   int32_t * fate) {
    return on_cache("kvmerge_cache_fates", cache, Access::SHARED, [&](kvmerge_cache & c) {
        c.require_whole();
        const int pair = pair_of(c, layer, kv_head);
        if (!c.params.record_fates) {
            throw Error(KVMERGE_E_STATE, "fates are not recorded: make the cache with record_fates");
        }
        require(first >= 0 && n >= 0 && int64_t(first) + n <= int64_t(c.n_tokens) + c.pending, "no such tokens");
        require(fate || n == 0, "fate is null");
        const int32_t in_table = std::clamp(c.n_tokens - first, 0, n);
        c.table.fates(pair, first, in_table, fate);
        for (int32_t i = in_table; i < n; i++) {
            fate[i] = first + i;
        }
    });
}

kvmerge_status kvmerge_cache_state_size(kvmerge_cache * cache, size_t * size) {
    return on_cache("kvmerge_cache_state_size", cache, Access::ALONE, [&](kvmerge_cache & c) {
        require(size, "size is null");
        *size = c.state_size();
    });
}

kvmerge_status kvmerge_cache_save(kvmerge_cache * cache, void * to, size_t size) {
    return on_cache("kvmerge_cache_save", cache, Access::ALONE,
                    [&](kvmerge_cache & c) { c.save(static_cast<char *>(to), size); });
}

kvmerge_status kvmerge_cache_restore(kvmerge_cache * cache, const void * from, size_t size) {
    return on_cache("kvmerge_cache_restore", cache, Access::ALONE,
                    [&](kvmerge_cache & c) { c.restore(static_cast<const char *>(from), size); });
}

} // extern "C"
