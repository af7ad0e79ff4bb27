// The checks that every function on cells makes first.
#pragma once

#include "observer.hpp"

#include <cstddef>
#include <cstdint>

namespace kvmerge {

// A layer's keys or values for reading on the host, on any thread.
CellView on_host(kvmerge_observer & o, CellTensor & cells);
// The layer whose cells are asked for. Throws ARGUMENT for a layer, KV head or cell that is not there, and STATE as the
// next two do.
kvmerge_observer::Layer & cells_of(kvmerge_observer & o, int32_t layer, int32_t kv_head, const int32_t * cells,
                                   int32_t n);
// Throws STATE before the layer's cells were seen; throws STATE after writing cells failed midway.
void require_cache(const kvmerge_observer & o, int layer);
void require_whole(const kvmerge_observer & o);
void require_untorn(const kvmerge_observer & o); // throws STATE where a call failed while it wrote cells
// Throws ARGUMENT for a cell that is named twice.
void require_distinct(const int32_t * cells, int32_t n, int n_cells);
// Throws NUMERIC for a NaN or an infinity. `x` may be null.
void require_finite(const float * x, size_t n, const char * what);

// Makes planning forget cells that are written.
inline void forget(kvmerge_observer::Layer & l, int kv_head, const int32_t * cells, size_t n) {
    if (size_t(kv_head) < l.neighbours.size()) { // fewer where memory ran out
        l.neighbours[size_t(kv_head)].rewritten(cells, n);
    }
}

// Lives while cells are written. Unless done() or queued() is called, the observer counts as torn.
class Writing {
  public:
    explicit Writing(kvmerge_observer & o) : o_(o) {
        o_.torn = true;
        o_.lost_before = o_.device->lost();
    }
    void done() { o_.torn = false; }
    void queued() { // on a GPU: finish_rewriting() will say
        o_.rewriting = true;
        o_.torn = false;
    }

  private:
    kvmerge_observer & o_;
};

} // namespace kvmerge
