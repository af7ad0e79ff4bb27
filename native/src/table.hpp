// What every cell holds, for each layer and KV head: llama.cpp's own record of a cell (one position, the same for all
// heads) stops being true once heads keep different tokens. The bookkeeping alone: nothing here knows llama.cpp.
#pragma once

#include "device.hpp"
#include "kvmerge.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace kvmerge {

// Cells that stay are 0 .. budget-2 and the one of llama.cpp's newest position, so that llama.cpp refills those behind
// them and its attention stays short. In a model with sliding windows they are those of the newest positions: llama.cpp
// frees a position in all layers at once, and the layers with windows need theirs.
class CellTable {
  public:
    struct Shape {
        int n_layer, n_head, n_head_kv, n_cells;
        int pairs() const { return n_layer * n_head_kv; }
    };

    // What is known of the cells in use, [pair][0..used) in position order, in rows of n_cells.
    struct Columns {
        std::vector<int32_t> cell;     // its number
        std::vector<int32_t> position; // of the token in the text
        std::vector<int32_t> frame;    // the position whose rotation the key carries
        std::vector<float> mass;       // attention received
        std::vector<float> exposure;   // queries that could attend to it, decayed as its mass is
        std::vector<float> entropy;    // of the token's own attention row
        std::vector<int32_t> count;    // tokens merged into it
        std::vector<float> prior;      // what a calibration says of the token
        explicit Columns(size_t n);
        size_t bytes() const;
    };

    // A block that was decoded.
    struct Block {
        int n_tokens;
        const int32_t * token_cell; // [n_tokens]
        const float * mass;         // [pair][n_cells], or null
        const float * entropy;      // [n_layer][n_head][entropy_stride], or null
        int entropy_stride;
        const float * prior; // [pair][n_tokens], or null: 0
    };

    // A plan for a pair's cells behind the pinned ones, in position order: as kvmerge_cache_stage takes it.
    struct Plan {
        int n;
        const int32_t * target;
        const float * weight;
        const float * value_weight; // null: as weight
    };

    CellTable(const Shape & shape, bool keeps_newest, bool limits_positions, bool records_fates);

    const Shape & shape() const { return shape_; }
    int64_t bytes() const;
    int used() const { return int(held_.size()); }
    int pinned() const { return pinned_; }
    const Columns & columns() const { return now_; }
    size_t row(int pair) const { return size_t(pair) * size_t(shape_.n_cells); }
    // The cells in use, in the order of the positions that llama.cpp knows them by.
    const std::vector<int32_t> & held() const { return held_; }

    // Whether another keeps the columns, on a device: then this table has the cells in use, plans and fates are not of
    // it, and columns() is a copy, as old as whoever filled it says. Before the first block.
    void keep_columns_elsewhere() { elsewhere_ = true; }
    bool columns_are_elsewhere() const { return elsewhere_; }
    Columns & copy() { return now_; }
    // The plans that were staged, [pair][n_cells] by their index; null where no value has a weight of its own. Throws
    // STATE where a pair lacks one, unless `some` will do.
    struct Staged {
        const int32_t * target;
        const float *weight, *value_weight;
        const std::vector<char> & staged; // by pair
    };
    Staged staged(bool some);
    void forget_staged() { std::fill(staged_.begin(), staged_.end(), char(0)); }
    // By cell: whether llama.cpp keeps it, of the rewriting that was begun.
    const std::vector<char> & stays() const { return stays_; }

    // Adds a block's tokens, which are at consecutive positions. `first_frame`: what llama.cpp was told of the first.
    // mass_decay: what DECAY_TOKENS tokens leave of mass and exposure. Throws ARGUMENT where its cells are not free,
    // and changes nothing.
    void check(const Block & block) const; // throws what add() would
    void add(const Block & block, int first_position, int first_frame, double mass_decay);
    void pin() { pinned_ = used(); }
    void clear();

    // Starts a rewriting: forgets what was staged. Every key is rotated back by `back` positions, but those that come
    // to the start get 0, 1, 2, ...
    void begin(int budget, int back) noexcept;
    int budget() const { return budget_; }
    int back() const { return back_; }
    // Takes a pair's plan; of several pairs, on any threads. Throws ARGUMENT, naming the layer and KV head.
    void stage(int pair, const Plan & plan);
    // What has to be written, when all pairs are staged; the arrays are the table's. Throws STATE before that.
    kvmerge_moves moves(bool pivot_frame);
    // Moves the table, when the cells have been rewritten.
    void commit() noexcept;

    // [pair][tokens]: see kvmerge_cache_fates. Empty where they are not recorded.
    const std::vector<std::vector<int32_t>> & fates() const { return fates_; }
    void fates(int pair, int first, int n, int32_t * out) const;

    // Replaces everything. columns: as columns(), of `held.size()` cells. Throws ARGUMENT for what no table can be.
    struct State {
        std::vector<int32_t> held;
        int pinned;
        Columns columns;
        std::vector<std::vector<int32_t>> fates;
    };
    void replace(State && state) noexcept;

  private:
    float token_entropy(const Block & block, int pair, int token) const;
    void check(const Plan & plan) const;
    void stage_by_index(int pair, const Plan & plan);

    const Shape shape_;
    const bool keeps_newest_, records_fates_;
    Columns now_, next_; // next: what a rewriting makes of them
    std::vector<int32_t> held_;
    int pinned_ = 0;
    bool elsewhere_ = false;
    std::vector<std::vector<int32_t>> fates_;

    int budget_ = 0, back_ = 0; // of the rewriting
    std::vector<int32_t> staying_;
    std::vector<char> stays_, staged_, values_apart_; // by cell; by pair
    std::vector<int32_t> target_, position_, dest_, new_position_, fate_;
    std::vector<float> weight_, value_weight_;
    mutable std::mutex sizing_; // held while value_weight_ gets its size, or is asked for it
};

} // namespace kvmerge
