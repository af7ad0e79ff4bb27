// What planning remembers of a KV head's cells from one plan to the next.
#pragma once

#include "kernels/kernels.hpp"

#include <mutex>
#include <vector>

namespace kvmerge {

// Distances between neighbours. The next plan needs most of them again, since few cells are written in between.
class Neighbours {
  public:
    explicit Neighbours(int n_cells) : known_(size_t(n_cells)), written_(size_t(n_cells), false) {}
    // Forgets cells that are written.
    void rewritten(const int32_t * cells, size_t n) {
        for (size_t i = 0; i < n; i++) {
            written_[size_t(cells[i])] = true;
        }
    }
    size_t bytes() const { return known_.capacity() * sizeof(Neighbour) + written_.capacity(); }
    void all_rewritten() { written_.assign(written_.size(), true); }

    // Calls plan(known). `known` is null while another thread plans over the same head.
    template <class Plan>
    void use(Plan && plan) {
        const std::unique_lock<std::mutex> lock(in_use_, std::try_to_lock);
        if (!lock) {
            plan(nullptr);
            return;
        }
        for (Neighbour & known : known_) {
            if (known.next >= 0 && (written_[size_t(&known - known_.data())] || written_[size_t(known.next)])) {
                known.next = -1;
            }
        }
        written_.assign(written_.size(), false);
        plan(known_.data());
    }

  private:
    std::vector<Neighbour> known_; // by cell
    std::vector<char> written_;    // by cell: since the last plan
    std::mutex in_use_;
};

} // namespace kvmerge
