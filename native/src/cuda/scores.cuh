// What the ways to look at scores share: scores.cu for any keys, half_scores.cuh for most on tensor cores.
#pragma once

#include "common.cuh"

namespace kvmerge {
namespace cuda {

// A KV head's rows are those of its query heads, one head after another.
struct Scores {
    ScoreStatsArgs a;
    float * lse;        // [KV heads][rows]
    uint4 * queries;    // in half precision, as half_queries() reads them; on tensor cores
    uint32_t * visible; // [n_rows][words_of(n_cells)]: a bit for each cell; on tensor cores
    __device__ int rows() const { return a.heads_per_kv * a.n_rows; }
    __device__ const float * query(int kv_head, int r) const {
        return a.q + std::ptrdiff_t(kv_head * a.heads_per_kv + r / a.n_rows) * a.head_stride +
               std::ptrdiff_t(r % a.n_rows) * a.row_stride;
    }
    __device__ float score(float dot) const {
        return a.cap != 0 ? a.cap * tanhf(a.scale * dot / a.cap) : a.scale * dot;
    }
    __device__ bool shows(int r, int c) const { // r: of n_rows
        return c < a.n_cells && !(a.mask && a.mask[r * a.mask_stride + c] == HIDDEN);
    }
};

constexpr int MOST_LAYERS = 16; // of a launch: parameters of a kernel have 4 KB
struct Layers {
    Scores at[MOST_LAYERS];
};
static_assert(sizeof(Layers) + 64 <= 4096, "the parameters of a kernel");

constexpr int ENOUGH_BLOCKS = 1024; // of threads, to occupy a GPU

// Running maximum m, l = sum e^(s-m) and t = sum e^(s-m) (s-m) of a row: H = log l - t / l, log-sum-exp = m + log l.
struct Online {
    float m = -INFINITY, l = 0, t = 0;
    __device__ void add(float s) {
        if (s == -INFINITY) {
            return;
        }
        if (s > m) {
            rescale(s);
        }
        const float y = s - m, e = expf(y);
        l += e;
        t += e == 0.0f ? 0.0f : e * y;
    }
    __device__ void rescale(float to) {
        const float d = m - to, a = expf(d); // from minus infinity: a = 0
        t = a == 0.0f ? 0.0f : a * (t + d * l);
        l = a == 0.0f ? 0.0f : a * l;
        m = to;
    }
    __device__ void merge(float m2, float l2, float t2) {
        if (m2 > m) {
            rescale(m2);
        }
        if (m2 > -INFINITY || l2 != 0.0f) { // a row of NaNs has a sum and no maximum
            const float d = m2 - m, a = m2 > -INFINITY ? expf(d) : 1.0f;
            t += a == 0.0f ? 0.0f : a * (t2 + d * l2);
            l += a * l2;
        }
    }
    // With what the lanes have found whose numbers differ in one bit.
    __device__ void merge_lanes(int bit) {
        const float m2 = __shfl_xor_sync(ALL_LANES, m, bit), l2 = __shfl_xor_sync(ALL_LANES, l, bit),
                    t2 = __shfl_xor_sync(ALL_LANES, t, bit);
        merge(m2, l2, t2);
    }
};

// In how many parts to cut `tiles`, which `others` thread blocks each go through: enough for the GPU, and no more, so
// that what the parts find needs little memory however long the context.
inline int parts_of(int tiles, int others) {
    const int wanted = std::min(tiles, ceil_div(ENOUGH_BLOCKS, others)), each = ceil_div(tiles, wanted);
    return ceil_div(tiles, each);
}

} // namespace cuda
} // namespace kvmerge
