// What has to be the same in the cache that a state is of and in the one that restores it.
#pragma once

#include "cache.hpp"

#include <cstddef>
#include <cstdint>

namespace kvmerge {

struct Kind {
    int32_t n_layer, n_head, n_head_kv, head_dim_k, head_dim_v, v_transposed;
    char type_k[16], type_v[16];
    int32_t n_cells, position_range, observe, bias, pivot_frame, record_fates;
    float mass_power, query_decay;
    double mass_decay;
    uint64_t calibration; // a sum of its weights
};

Kind kind_of(const kvmerge_cache & cache);

// Throws ARGUMENT, which says what is another.
void require_same(const Kind & saved, const Kind & own);

// Of bytes, against damage: FNV-1a, over words.
uint64_t sum_of(const char * bytes, size_t n);

} // namespace kvmerge
