// The steps of capturing queries on the CPU: what device.hpp's queue does on a GPU.
#include "capture_steps.hpp"

#include <cmath>
#include <cstring>

namespace kvmerge {

void host_collect_queries(const CollectQueriesArgs & a) {
    for (int layer = 0; layer < a.n_layers; layer++) {
        if (a.n_moved > 0) {
            std::memcpy(a.to[layer], a.from[layer], size_t(a.n_moved) * sizeof(float));
        }
        for (int r = 0; r < a.n_rows; r++) {
            std::memcpy(a.coming[layer] + r * a.row, &NOT_COME, sizeof NOT_COME);
        }
    }
    for (int r = 0; a.masks && r < a.n_rows; r++) {
        int visible = 0;
        for (int c = 0; c < a.n_cells; c++) {
            const std::ptrdiff_t at = r * a.mask_stride + c;
            const bool sees = c < a.n_kv && (!a.mask         ? true
                                             : a.mask_floats ? static_cast<const float *>(a.mask)[at] > -INFINITY
                                                             : static_cast<const uint16_t *>(a.mask)[at] != HIDDEN);
            a.masks[std::ptrdiff_t(r) * a.n_cells + c] = sees ? 0 : HIDDEN;
            visible += sees;
            if (a.newest && r == a.n_rows - 1) {
                a.newest[c] = sees;
            }
        }
        a.inv_log_visible[r] = visible > 1 ? float(1 / std::log(double(visible))) : 0.0f;
    }
}

void host_check_queries(const CheckQueriesArgs & a) {
    for (int layer = 0; layer < a.n_layers; layer++) {
        for (int r = 0; r < a.n_rows; r++) {
            float * const row = a.queries[layer] + r * a.row;
            if (std::memcmp(row, &NOT_COME, sizeof NOT_COME) == 0) {
                *a.missing[layer] = *a.missing[layer] < 0 ? a.first_token + r : *a.missing[layer];
                std::memset(row, 0, size_t(a.row) * sizeof(float));
            }
        }
    }
}

} // namespace kvmerge
