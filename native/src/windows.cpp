#include "windows.hpp"

#include "status.hpp"

#include <algorithm>

namespace kvmerge {

void WindowCells::wrote(const std::vector<int64_t> & cells, int64_t n_cells) {
    if (cells.empty()) {
        return;
    }
    position_.resize(size_t(n_cells), NONE);
    const bool first = next_ == block_;
    int64_t newest_lost = NONE;
    for (const int64_t cell : cells) {
        require(cell >= 0 && cell < n_cells, "a token was written to a cell outside the windows' cache");
        newest_lost = std::max(newest_lost, position_[size_t(cell)]);
        position_[size_t(cell)] = next_++;
    }
    reaches_back_ &= first || newest_lost == NONE;
    remove(0, newest_lost + 1); // llama.cpp keeps no position before one that it has overwritten
    head_ = cells.back() + 1;
}

void WindowCells::remove(int64_t from, int64_t to) {
    int64_t first = head_;
    for (size_t cell = position_.size(); cell-- > 0;) {
        if (position_[cell] != NONE && position_[cell] >= from && position_[cell] < to) {
            position_[cell] = NONE;
            first = std::min(first, int64_t(cell));
        }
    }
    head_ = first;
}

void WindowCells::forget() {
    remove(block_, next_);
    next_ = block_;
}

void WindowCells::clear() {
    remove(0, next_);
    next_ = block_ = 0;
}

void WindowCells::replace(std::vector<int64_t> && position, int64_t head, int64_t next) {
    position_ = std::move(position);
    head_ = head;
    next_ = block_ = next;
}

} // namespace kvmerge
