// One sequence of a llama_context, held within a number of cells.
#pragma once

#include "device_table.hpp"
#include "handles.hpp"
#include "kvmerge.h"
#include "observer.hpp"
#include "status.hpp"
#include "table.hpp"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct kvmerge_cache {
    kvmerge_cache_params params;
    std::vector<float> calibration; // a copy
    kvmerge_observer * observer;    // its handle
    llama_context * context;
    int32_t seq_id;
    int32_t n_threads;                        // the observer's
    bool observes_mass;                       // likewise
    std::shared_ptr<std::atomic<int>> inside; // the observer's: calls with its caches
    kvmerge::CellTable table;
    std::unique_ptr<kvmerge::DeviceTable> there; // the table's columns, where GPUs have the cells; null: the host has
                                                 // them
    bool placed = false;                         // it was seen where they are
    int32_t n_tokens = 0;                        // in the table
    int32_t position = 0;                        // of the next token behind the table's, for llama.cpp
    int32_t pending = 0;                         // decoded by decode(), and not in the table yet
    bool begun = false;         // a block of the observer, in which nothing was decoded if nothing is pending
    std::string broken;         // why it is; empty: it is not
    int64_t observer_bytes = 0; // as of the last block or rewriting

    kvmerge_cache(const kvmerge_cache_params & params, const kvmerge_observer & observer, kvmerge_observer * handle,
                  llama_context * context, int32_t seq_id);

    int64_t bytes() const; // all that is kept in memory of the sequence, of the observer too; on devices too
    void weigh();          // finds out what the observer has, if no other thread is inside of it

    bool is_over() const { return params.n_cells > 0 && table.used() > params.n_cells; }
    void require_whole() const;
    void require_due() const;
    void require_mass() const; // of plans that the default strategy makes

    int32_t most_pending() const { return std::max(params.n_block, params.n_prompt_block); }

    void decode(const int32_t * tokens, int32_t n, const float ** logits);
    void settle(); // takes what is pending, and compresses
    void take(int32_t n, kvmerge_block_stats * stats);
    void take_pending();
    void require_positions(int32_t n) const; // for n more tokens
    void expect_plans();                     // where there are too many cells
    void plan();                             // by the default strategy
    void commit();
    void finish_rewriting();                       // by a GPU: before others than the observer look at cells
    const kvmerge::CellTable::Columns & columns(); // on the host; on any thread
    void place();                                  // when it is known where the cells lie
    void pin(int32_t n_fewest);
    void clear();

    size_t state_size();
    void save(char * to, size_t size);
    void restore(const char * from, size_t size);

  private:
    void require_calibrated_for(int32_t dim) const; // elements of a key
    void took(int32_t n);                           // n tokens, into the table
    void require_seen(const kvmerge_block_stats & stats, int32_t n, bool attention) const;
    void take_there(int32_t n, kvmerge_block_stats * stats);
    void plan_there();
    void commit_there();
    void require_rewritten(); // throws DEVICE where a rewriting has failed before the graph that was decoded
    // Runs body. Where it throws and cells were written by half, the cache is broken.
    template <class Body>
    void or_broken(Body && body) {
        try {
            body();
        } catch (const kvmerge::Error & why) {
            if (!is_untouched()) {
                broken = why.what();
            }
            throw;
        }
    }
    void decode_batch(const int32_t * tokens, int32_t n, bool last_logits);
    void free_cells();
    std::vector<float> priors(const int32_t * cells, int32_t n) const;
    void plan(int pair);
    bool is_untouched() const;
    bool windows_reach_back() const;
    bool saw_more(bool if_busy) const;
    void become_known();
    size_t n_windows() const; // cells of the layers with sliding windows, once some were seen
};

namespace kvmerge {

Handles<kvmerge_cache> & caches();

// Weights of a calibration before the keys'.
constexpr int CALIBRATION_SCALARS = 6;

// Forgets the query moments, exact biases and the distances between cells, as if nothing had been decoded.
void forget_queries(kvmerge_observer & o);

constexpr double LEAST_RATE = 1e-6; // added to rates whose logarithm is taken

// What the default strategy may touch of n cells, behind the pinned ones: [first, end); and how many have to go.
struct DefaultPlan {
    int first, end, operations;
};
DefaultPlan default_plan(const kvmerge_cache_params & params, int n, int budget);

// Throws what a function of kvmerge.h answered.
void pass(kvmerge_status status);

// A call with a cache, during which its observer is not freed.
class Inside {
  public:
    explicit Inside(std::atomic<int> & calls) : calls_(calls) { calls_++; }
    Inside(const Inside &) = delete;
    ~Inside() { calls_--; }

  private:
    std::atomic<int> & calls_;
};

// Runs an entry's body on the cache behind a handle, if this thread may enter it.
template <class Body>
kvmerge_status on_cache(const char * entry, kvmerge_cache * handle, Access access, Body && body) noexcept {
    return guarded(entry, [&] {
        const Handles<kvmerge_cache>::Use use(caches(), handle, access);
        kvmerge_cache & c = caches().entered(use);
        const Inside inside(*c.inside);
        body(c);
    });
}

// What a rewriting moves positions back by, when the next token's is `position`.
inline int32_t back_of(const kvmerge_cache_params & params, int32_t position) {
    return params.position_range > 0 ? std::max(0, position - params.position_range) : 0;
}

// Runs body on a cache's observer, alone.
template <class Body>
void in_observer(kvmerge_observer * handle, Body && body) {
    const Handles<kvmerge_observer>::Use use(observers(), handle, Access::ALONE);
    body(observers().entered(use)); // create() has seen that it is no group's
}

} // namespace kvmerge
