// In which cells llama.cpp has put the tokens of the layers with sliding windows, for one sequence.
#pragma once

#include <cstdint>
#include <vector>

namespace kvmerge {

// Those layers have a cache of their own, as a ring: llama.cpp goes on behind the cell that it wrote last, in cells
// that are free or whose token no window sees any more. It does not say which cells those are. This does over what was
// seen being written as llama.cpp does (llama_kv_cache::apply_ubatch and seq_rm). Tokens are counted from position 0.
class WindowCells {
  public:
    static constexpr int64_t NONE = -1;

    // A ubatch of n tokens goes to these cells, of n_cells.
    void wrote(const std::vector<int64_t> & cells, int64_t n_cells);
    void begin() { block_ = next_, reaches_back_ = true; }
    void forget(); // the tokens since begin()
    void remove(int64_t from, int64_t to);
    void clear();
    // Becomes what a restored state has left. position: by cell, or NONE.
    void replace(std::vector<int64_t> && position, int64_t head, int64_t next);

    const std::vector<int64_t> & position() const { return position_; } // by cell, or NONE; empty: none was written yet
    // Whether the window of the first token since begin() is still whole: ubatches after the first overwrite a part.
    bool reaches_back() const { return reaches_back_; }
    int64_t head() const { return head_; } // where llama.cpp looks for a cell first
    int64_t next() const { return next_; } // the next token's position

  private:
    std::vector<int64_t> position_;
    int64_t head_ = 0, next_ = 0, block_ = 0;
    bool reaches_back_ = true;
};

} // namespace kvmerge
