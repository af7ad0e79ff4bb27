// What attention did: from the probabilities, or from the queries and keys.
#include "fast.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace kvmerge {
namespace KVMERGE_ISA {

// Sum of p ln p over a row.
static inline double negative_entropy(const float * p, int n) {
    double sum = 0;
    for (int c0 = 0; c0 < n; c0 += BLOCK) {
        const int c1 = std::min<int>(n, c0 + BLOCK);
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int c = c0; c < c1; c++) {
            part += p[c] * log_positive(p[c]);
        }
        sum += part;
    }
    return sum;
}

template <int HALF_POWERS>
static void attention_stats_of(const AttentionStatsArgs & a) {
    for (int h = 0; h < a.n_kv_heads * a.group; h++) {
        const float * const head = a.p + h * a.head_stride;
        float * const mass = a.mass ? a.mass + h / a.group * a.mass_stride : nullptr;
        for (int r0 = 0; r0 < a.n_rows; r0 += 4) {
            const int rows = std::min(4, a.n_rows - r0);
            const float * const p = head + r0 * a.row_stride;
            if (mass && rows == 4) {
                add_rows<4, HALF_POWERS>(p, a.row_stride, a.n_cells, mass);
            }
            for (int r = 0; r < rows; r++) {
                const float * const row = p + r * a.row_stride;
                if (mass && rows < 4) {
                    add_rows<1, HALF_POWERS>(row, 0, a.n_cells, mass);
                }
                if (a.entropy) {
                    const float normalised = float(-negative_entropy(row, a.n_cells) * a.inv_log_visible[r0 + r]);
                    a.entropy[h * a.entropy_stride + r0 + r] = normalised < 0   ? 0
                                                               : normalised > 1 ? 1
                                                                                : normalised; // lets NaN through
                }
            }
        }
    }
}

void attention_stats(const AttentionStatsArgs & a) {
    a.half_powers == 2 ? attention_stats_of<2>(a) : a.half_powers == 3 ? attention_stats_of<3>(a) : attention_stats_of<4>(a);
}

// A tile of scores is ROW_TILE queries by two vectors of cells, kept in registers while a dimension after another is added.
#if defined(__AVX512F__)
constexpr int VECTOR_FLOATS = 16, ROW_TILE = 8;
#elif defined(__AVX2__)
constexpr int VECTOR_FLOATS = 8, ROW_TILE = 6;
#else
constexpr int VECTOR_FLOATS = 4, ROW_TILE = 4;
#endif
constexpr int CELL_TILE = 2 * VECTOR_FLOATS;
typedef float Vector __attribute__((vector_size(VECTOR_FLOATS * sizeof(float)), aligned(4), may_alias));

// scores[ROWS][stride] = queries * keys for one tile of cells. `keys` is [dim][stride], transposed.
template <int ROWS>
static inline void score_tile(const float * const * q, const float * keys, std::ptrdiff_t stride, int dim, float * scores) {
    Vector sum[ROWS][2] = {};
    for (int i = 0; i < dim; i++) {
        const Vector k0 = *reinterpret_cast<const Vector *>(keys + i * stride);
        const Vector k1 = *reinterpret_cast<const Vector *>(keys + i * stride + VECTOR_FLOATS);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            sum[r][0] += q[r][i] * k0;
            sum[r][1] += q[r][i] * k1;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        *reinterpret_cast<Vector *>(scores + r * stride) = sum[r][0];
        *reinterpret_cast<Vector *>(scores + r * stride + VECTOR_FLOATS) = sum[r][1];
    }
}

// Turns a row of scores into probabilities, adds them to the mass, and gives back the row's entropy in nats.
template <int HALF_POWERS>
static inline float finish_row(float * s, const uint16_t * mask, int n, float scale, float cap, float * mass) {
    const float hidden = -std::numeric_limits<float>::infinity();
    float max = hidden;
    if (cap != 0) {
        for (int c = 0; c < n; c++) {
            s[c] = cap * std::tanh(scale * s[c] / cap);
        }
    } else {
#pragma omp simd
        for (int c = 0; c < n; c++) {
            s[c] *= scale;
        }
    }
    if (mask) {
#pragma omp simd
        for (int c = 0; c < n; c++) {
            s[c] = mask[c] == 0xfc00 ? hidden : s[c];
        }
    }
#pragma omp simd reduction(max : max)
    for (int c = 0; c < n; c++) {
        max = s[c] > max ? s[c] : max;
    }
    if (max == hidden) { // sees nothing, or nothing but NaN, which the sums below would show
        float sum = 0;
        for (int c = 0; c < n; c++) {
            sum += s[c] == hidden ? 0.0f : s[c];
        }
        mass[0] += sum;
        return sum;
    }
    double sum = 0, weighted = 0; // l and t of H = log l - t / l
    for (int c0 = 0; c0 < n; c0 += BLOCK) {
        const int c1 = std::min<int>(n, c0 + BLOCK);
        float part = 0, part_weighted = 0;
#pragma omp simd reduction(+ : part, part_weighted)
        for (int c = c0; c < c1; c++) {
            const float y = s[c] - max;
            const float e = exp_bounded(y);
            part += e;
            part_weighted += e == 0.0f ? 0.0f : e * y;
            s[c] = e;
        }
        sum += part;
        weighted += part_weighted;
    }
    const float inverse = float(1 / sum);
#pragma omp simd
    for (int c = 0; c < n; c++) {
        mass[c] += sharpened<HALF_POWERS>(s[c] * inverse);
    }
    return float(std::log(sum) - weighted / sum);
}

// keys: [dim][stride]
static void transpose_keys(const CellView & view, int head, int n_cells, std::ptrdiff_t stride, float * keys) {
    constexpr int TILE = 64;
    std::vector<float> tile(size_t(TILE) * view.dim);
    int32_t cells[TILE];
    for (int c0 = 0; c0 < n_cells; c0 += TILE) {
        const int n = std::min(TILE, n_cells - c0);
        for (int c = 0; c < n; c++) {
            cells[c] = c0 + c;
        }
        gather_cells({view, head, cells, n, tile.data()});
        for (int i = 0; i < view.dim; i++) {
            for (int c = 0; c < n; c++) {
                keys[i * stride + c0 + c] = tile[size_t(c) * view.dim + i];
            }
        }
    }
}

template <int HALF_POWERS>
static void score_stats_of(const ScoreStatsArgs & a) {
    const std::ptrdiff_t stride = (a.n_cells + CELL_TILE - 1) / CELL_TILE * CELL_TILE;
    const int dim = a.keys.dim;
    std::vector<float> keys(size_t(stride) * dim, 0.0f), scores(size_t(stride) * ROW_TILE);
    for (int h = 0; h < a.n_kv_heads * a.group; h++) {
        if (h % a.group == 0) {
            transpose_keys(a.keys, a.first_kv_head + h / a.group, a.n_cells, stride, keys.data());
        }
        float * const mass = a.mass + h / a.group * a.mass_stride;
        for (int r0 = 0; r0 < a.n_rows; r0 += ROW_TILE) {
            const int rows = std::min(ROW_TILE, a.n_rows - r0);
            const float * q[ROW_TILE];
            for (int r = 0; r < ROW_TILE; r++) { // the last tile repeats its last row
                q[r] = a.q + h * a.head_stride + (r0 + std::min(r, rows - 1)) * a.row_stride;
            }
            for (std::ptrdiff_t c = 0; c < stride; c += CELL_TILE) {
                score_tile<ROW_TILE>(q, keys.data() + c, stride, dim, scores.data() + c);
            }
            for (int r = 0; r < rows; r++) {
                const uint16_t * mask = a.mask ? a.mask + (r0 + r) * a.mask_stride : nullptr;
                const float entropy = finish_row<HALF_POWERS>(scores.data() + r * stride, mask, a.n_cells, a.scale, a.cap, mass);
                if (a.entropy) {
                    const float normalised = entropy * a.inv_log_visible[r0 + r];
                    a.entropy[h * a.entropy_stride + r0 + r] = normalised < 0 ? 0 : normalised > 1 ? 1 : normalised;
                }
            }
        }
    }
}

void score_stats(const ScoreStatsArgs & a) {
    a.half_powers == 2 ? score_stats_of<2>(a) : a.half_powers == 3 ? score_stats_of<3>(a) : score_stats_of<4>(a);
}

// Runs are short and the values few: bound by the reads, so one pass is all there is to it.
void find_spans(const FindSpansArgs & a) {
    for (int row = 0; row < a.n_rows; row++) {
        const float * const value = a.value + row * a.stride;
        int32_t * const span = a.span + row * a.stride;
        int32_t start = -1;
        for (int i = a.first; i < a.end; i++) {
            start = !(value[i] > a.threshold) ? -1 : start < 0 || i - start == a.longest ? i : start;
            span[i] = start;
        }
    }
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
