// What every entry that reads or writes cells asks first.
#pragma once

#include "observer.hpp"

#include <cstddef>
#include <cstdint>

namespace kvmerge {

// A layer's keys or values for reading on the host, on any thread.
CellView on_host(kvmerge_observer & o, CellTensor & cells);
// The layer whose cells are asked for. Throws ARGUMENT for one that is not there, STATE as the next two.
kvmerge_observer::Layer & cells_of(kvmerge_observer & o, int32_t layer, int32_t kv_head, const int32_t * cells,
                                   int32_t n);
// Throw STATE: before the layer's cells were seen, and after writing some failed midway.
void require_cache(const kvmerge_observer & o, int layer);
void require_whole(const kvmerge_observer & o);
// Throws ARGUMENT for a cell that is there twice.
void require_distinct(const int32_t * cells, int32_t n, int n_cells);
// Throws NUMERIC for a NaN or an infinity. `x` may be null.
void require_finite(const float * x, size_t n, const char * what);

// Planning knows nothing any more of cells that are written to.
inline void forget(kvmerge_observer::Layer & l, int kv_head, const int32_t * cells, size_t n) {
    if (!l.neighbours.empty()) {
        l.neighbours[size_t(kv_head)].rewritten(cells, n);
    }
}

// While cells are written: unless it is told that all went well, they count as torn.
class Writing {
  public:
    explicit Writing(kvmerge_observer & o) : o_(o) { o_.torn = true; }
    void done() { o_.torn = false; }

  private:
    kvmerge_observer & o_;
};

} // namespace kvmerge
