// What a cache does with its sequence: decodes, takes account, has cells rewritten and frees the others.
#include "cache.hpp"

#include "cell_access.hpp"
#include "parallel.hpp"

#include "llama.h"

#include <algorithm>
#include <cmath>

using namespace kvmerge;

namespace kvmerge {

void pass(kvmerge_status status) {
    if (status != KVMERGE_OK) {
        throw Error(status, kvmerge_last_error());
    }
}

} // namespace kvmerge

kvmerge_cache::kvmerge_cache(const kvmerge_cache_params & p, const kvmerge_observer & o, kvmerge_observer * handle,
                             llama_context * context, int32_t seq_id)
    : params(p), observer(handle), context(context), seq_id(seq_id), n_threads(o.params.n_threads),
      observes_mass(o.params.observe & KVMERGE_OBSERVE_MASS), inside(o.in_caches),
      table({o.params.n_layer, o.params.n_head, o.params.n_head_kv, o.params.n_cells}, p.keep_newest != 0,
            p.position_range > 0, p.record_fates != 0) {
    if (p.calibration) {
        const size_t n = size_t(table.shape().pairs()) * size_t(CALIBRATION_SCALARS + p.calibration_dim);
        require_finite(p.calibration, n, "calibration");
        calibration.assign(p.calibration, p.calibration + n);
    }
    params.calibration = nullptr; // the copy counts
}

void kvmerge_cache::require_whole() const {
    if (!broken.empty()) {
        throw Error(KVMERGE_E_STATE,
                    text("the cache is broken, since an earlier call failed halfway: %.300s", broken.c_str()));
    }
}

void kvmerge_cache::require_due() const {
    require_whole();
    if (!is_over()) {
        throw Error(KVMERGE_E_STATE, "no compression is due: the cells in use are no more than stay");
    }
}

void kvmerge_cache::require_mass() const {
    require(observes_mass, "the default strategy goes by the attention that cells receive, which this cache's observer "
                           "does not observe: make it with KVMERGE_OBSERVE_MASS, or stage plans of your own");
}

void kvmerge_cache::require_positions(int32_t n) const {
    // As many as there are cells are left for restore(), which fills cells for a moment.
    require(n <= INT32_MAX - table.shape().n_cells - n_tokens - pending,
            "the text has as many tokens as can be counted: clear the cache");
}

void kvmerge_cache::decode(const int32_t * tokens, int32_t n, const float ** logits) {
    require_whole();
    require_positions(n);
    if (params.n_cells > 0) {
        require_mass();
    }
    const int32_t n_batch = int32_t(std::min<uint32_t>(params.llama.n_batch(context), INT32_MAX));
    const int32_t block_of_prompts = std::min(most_pending(), n_batch); // one batch
    for (int32_t at = 0; at < n;) {
        const bool prompt = n - at > params.n_block && block_of_prompts > params.n_block;
        if (pending >= params.n_block || (prompt && pending > 0)) { // what failed at the last one's end, or a
                                                                    // generation
            settle();
        }
        if (is_over()) {
            plan();
            commit();
        }
        const int32_t m = std::min({n - at, prompt ? block_of_prompts : params.n_block - pending, n_batch});
        require(table.used() + pending + m <= table.shape().n_cells, "there are no free cells for so many tokens");
        if (pending == 0 && !begun) {
            pass(kvmerge_observer_begin(observer));
            begun = true;
        }
        decode_batch(tokens + at, m, at + m == n);
        pending += m;
        at += m;
        if (pending >= params.n_block) {
            settle();
        }
    }
    if (logits) {
        *logits = params.llama.get_logits_ith(context, -1);
    }
}

void kvmerge_cache::decode_batch(const int32_t * tokens, int32_t n, bool last_logits) {
    std::vector<llama_token> token(tokens, tokens + n);
    std::vector<llama_pos> pos(token.size());
    std::vector<int32_t> n_seq_id(token.size(), 1);
    llama_seq_id seq = seq_id;
    std::vector<llama_seq_id *> seq_ids(token.size(), &seq);
    std::vector<int8_t> outputs(token.size(), 0);
    const int32_t first = position + pending;
    for (int32_t i = 0; i < n; i++) {
        pos[size_t(i)] = first + i;
    }
    outputs.back() = last_logits;
    const llama_batch batch = {n, token.data(), nullptr, pos.data(), n_seq_id.data(), seq_ids.data(), outputs.data()};
    const int32_t status = reinterpret_cast<decltype(&llama_decode)>(params.llama.decode)(context, batch);
    if (status != 0) {
        const std::string why = text("llama_decode failed with status %d%s", status,
                                     status == 1 ? ": no free cells for the batch" : "; its log says why");
        llama_memory_i * const memory = params.llama.get_memory(context);
        if (!params.llama.memory_seq_rm(memory, seq_id, first, first + n) ||
            (pending == 0 ? kvmerge_observer_forget(observer) != KVMERGE_OK || !windows_reach_back()
                          : saw_more(true)) ||
            params.llama.memory_seq_pos_max(memory, seq_id) != first - 1) {
            broken = why;
        }
        throw Error(KVMERGE_E_STATE, why);
    }
    params.llama.synchronize(context);
    if (there) {
        require_rewritten();
    }
}

// Whether layers with sliding windows have what they had when the block began.
bool kvmerge_cache::windows_reach_back() const {
    const Handles<kvmerge_observer>::Use use(observers(), observer, Access::ALONE);
    return use.status() == KVMERGE_OK && use.object().windows.reaches_back();
}

// Whether the observer saw something else than the tokens that are pending: its statistics of them are mixed then.
// if_busy: what to answer while another thread is inside of it.
bool kvmerge_cache::saw_more(bool if_busy) const {
    const Handles<kvmerge_observer>::Use use(observers(), observer, Access::ALONE);
    if (use.status() == KVMERGE_E_STATE) {
        return if_busy;
    }
    return use.status() != KVMERGE_OK || use.object().error || observers().missed(observer) ||
           int32_t(use.object().token_cell.size()) != pending;
}

void kvmerge_cache::settle() {
    take_pending();
    if (is_over()) {
        plan();
        commit();
    }
}

void kvmerge_cache::take_pending() {
    if (pending > 0) {
        const int32_t n = pending;
        try {
            take(n, nullptr);
        } catch (const Error & e) {
            const bool may_pass =
                e.status == KVMERGE_E_STATE || e.status == KVMERGE_E_MEMORY || e.status == KVMERGE_E_DEVICE;
            if (!may_pass || saw_more(false)) { // else the next call tries again
                broken = e.what();
            }
            throw;
        }
        pending = 0;
    }
}

void kvmerge_cache::take(int32_t n, kvmerge_block_stats * out) {
    require_whole();
    require_positions(n - pending);
    place();
    if (there) {
        or_broken([&] { take_there(n, out); });
        return;
    }
    kvmerge_block_stats stats;
    pass(kvmerge_observer_stats(observer, &stats));
    require_seen(stats, n, stats.mass != nullptr);
    int32_t stride = 0;
    in_observer(observer, [&](const kvmerge_observer & o) { stride = o.params.n_tokens; });
    const std::vector<float> prior = priors(stats.token_cell, n);
    table.add({n, stats.token_cell, stats.mass, stats.entropy, stride, prior.empty() ? nullptr : prior.data()},
              n_tokens, position, params.mass_decay);
    took(n);
    if (out) {
        *out = stats;
    }
}

int64_t kvmerge_cache::bytes() const {
    return table.bytes() + int64_t(bytes_of(calibration)) + (there ? there->bytes() : 0) + observer_bytes;
}

void kvmerge_cache::weigh() {
    const Handles<kvmerge_observer>::Use use(observers(), observer, Access::ALONE);
    if (use.status() == KVMERGE_OK) {
        observer_bytes = int64_t(use.object().bytes());
    }
}

void kvmerge_cache::took(int32_t n) {
    n_tokens += n;
    position += n;
    begun = false;
    weigh();
    expect_plans();
}

// Throws UNSUPPORTED where the observer has not seen all of a block. `attention`: whether it looks at that.
void kvmerge_cache::require_seen(const kvmerge_block_stats & stats, int32_t n, bool attention) const {
    if (stats.n_tokens != n) {
        throw Error(
            KVMERGE_E_UNSUPPORTED,
            text("the graph showed %d cache writes for %d tokens: this model's attention is not the ordinary one",
                 stats.n_tokens, n));
    }
    const CellTable::Shape & shape = table.shape();
    if (attention && stats.n_layer_seen != shape.n_layer) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("the attention of %d of %d layers could not be observed: this model's "
                                                "attention is not the ordinary one",
                                                shape.n_layer - stats.n_layer_seen, shape.n_layer));
    }
}

void kvmerge_cache::expect_plans() {
    if (is_over()) {
        table.begin(params.n_cells, back_of(params, position));
        if (there) {
            there->forget_plans();
        }
    }
}

void kvmerge_cache::require_calibrated_for(int32_t dim) const {
    if (!calibration.empty() && dim != params.calibration_dim) {
        throw Error(KVMERGE_E_ARGUMENT, text("the calibration is for keys of %d elements, the model's have %d",
                                             params.calibration_dim, dim));
    }
}

// What the calibration says of the newest n tokens: [pair][n].
std::vector<float> kvmerge_cache::priors(const int32_t * cells, int32_t n) const {
    if (calibration.empty()) {
        return {};
    }
    kvmerge_cache_info info;
    pass(kvmerge_observer_cache_info(observer, &info));
    require_calibrated_for(info.head_dim_k);
    std::vector<int32_t> at(static_cast<size_t>(n));
    for (int32_t i = 0; i < n; i++) {
        at[size_t(i)] = position + i;
    }
    const int n_head_kv = table.shape().n_head_kv;
    std::vector<float> prior(size_t(table.shape().pairs()) * size_t(n));
    parallel_for(table.shape().pairs(), n_threads, [&](int64_t pair) {
        constexpr double LEAST_LENGTH = 1e-3;
        const float * const w =
            calibration.data() + size_t(pair) * size_t(CALIBRATION_SCALARS + params.calibration_dim);
        std::vector<float> product(at.size()), length(at.size());
        pass(kvmerge_project_cells(observer, int32_t(pair) / n_head_kv, int32_t(pair) % n_head_kv, cells, at.data(), n,
                                   w + CALIBRATION_SCALARS, product.data(), length.data()));
        for (size_t i = 0; i < at.size(); i++) {
            prior[size_t(pair) * at.size() + i] =
                float(double(w[0]) + double(w[5]) * std::log(double(length[i]) + LEAST_LENGTH) + double(product[i]));
        }
    });
    return prior;
}

// Whether a rewriting that failed had not begun to write.
bool kvmerge_cache::is_untouched() const {
    const Handles<kvmerge_observer>::Use use(observers(), observer, Access::SHARED);
    // Where another thread is inside, it kept the rewriting out.
    return use.status() == KVMERGE_E_STATE || (use.status() == KVMERGE_OK && !use.object().torn);
}

void kvmerge_cache::commit() {
    require_due();
    or_broken([&] {
        if (there) {
            commit_there();
        } else {
            const kvmerge_moves moves = table.moves(params.pivot_frame != 0);
            pass(kvmerge_apply(observer, &moves));
        }
    });
    free_cells();
    position -= table.back();
    table.commit();
    weigh();
}

// Frees the cells that do not stay in llama.cpp's record.
void kvmerge_cache::free_cells() {
    llama_memory_i * const memory = params.llama.get_memory(context);
    const auto remove = [&](int32_t from, int32_t to) {
        if (from < to && !params.llama.memory_seq_rm(memory, seq_id, from, to)) {
            broken = text("llama.cpp cannot free the positions [%d, %d)", from, to);
            throw Error(KVMERGE_E_STATE, broken);
        }
    };
    const int32_t budget = table.budget(), back = table.back();
    if (params.keep_newest) {
        remove(0, position - budget);
        const Handles<kvmerge_observer>::Use use(observers(), observer, Access::ALONE);
        if (use.status() == KVMERGE_OK) { // else they count as held, by tokens that no window sees
            use.object().windows.remove(0, position - budget);
        }
        return;
    }
    // In llama.cpp's record the cells 0 .. budget-2 keep the positions they first had, which are those numbers. Behind
    // them one cell stays, and the text goes on after its position: with a position range that is not the newest one.
    // So llama.cpp never shifts positions, and never rotates keys: its shift would multiply all keys by YaRN's factor
    // each time.
    remove(budget - 1, position - back - 1);
    remove(position - back, position);
}

void kvmerge_cache::pin(int32_t n_fewest) {
    require_whole();
    require(n_fewest >= 2, "n_fewest must be 2 and more");
    take_pending();
    if (params.n_cells > 0 && table.used() > params.n_cells - n_fewest) {
        throw Error(KVMERGE_E_ARGUMENT,
                    text("%d cells are in use: pinned, they would leave %d of %d, fewer than the %d "
                         "that are needed",
                         table.used(), std::max(0, params.n_cells - table.used()), params.n_cells, n_fewest));
    }
    table.pin();
}

void kvmerge_cache::clear() {
    in_observer(observer, [](kvmerge_observer & o) {
        o.finish_rewriting();
        if (o.torn) {
            throw Error(KVMERGE_E_STATE, "writing cells failed halfway: make the context and its observer anew");
        }
    });
    if (!params.llama.memory_seq_rm(params.llama.get_memory(context), seq_id, -1, -1)) {
        broken = "llama.cpp cannot free the sequence's cells";
        throw Error(KVMERGE_E_STATE, broken);
    }
    pass(kvmerge_observer_begin(observer));
    in_observer(observer, [](kvmerge_observer & o) { forget_queries(o); });
    table.clear();
    if (there) {
        there->forget();
    }
    n_tokens = position = pending = 0;
    begun = false;
    broken.clear();
}
