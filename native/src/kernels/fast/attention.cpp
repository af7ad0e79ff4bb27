// Attention mass and row entropy, from the probabilities or from the queries and keys.
#include "fast.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace kvmerge {
namespace KVMERGE_ISA {

// log2 of x >= 0, times x: the exponent, and a polynomial for the mantissa in [1, 2) with error below 2e-6 (degree 6,
// minimax by Lawson's iteration). The absolute error is what counts, since the terms are weighted by probabilities. 0
// gives 0, NaN stays.
constexpr float LOG2_0 = 1.845698535e-6f, LOG2_1 = 1.442495346f, LOG2_2 = -0.7177910805f, LOG2_3 = 0.4565216005f,
                LOG2_4 = -0.2765406370f, LOG2_5 = 0.1210021526f, LOG2_6 = -0.02569106035f;
constexpr double LN_2 = 0.693147180559945309;

static inline float times_log2(float x) {
    const float normal = x < 1.17549435e-38f ? 1.17549435e-38f : x;
    const int32_t bits = to_bits(normal);
    const float t = from_bits((bits & 0x7fffff) | 0x3f800000) - 1.0f;
    const float mantissa =
        LOG2_0 + t * (LOG2_1 + t * (LOG2_2 + t * (LOG2_3 + t * (LOG2_4 + t * (LOG2_5 + t * LOG2_6)))));
    return x * (float((bits >> 23) - 127) + mantissa);
}

#if defined(__AVX512F__)
// By intrinsics, since the compiler does not find the instructions for exponent and mantissa. A term takes eleven.
static inline __m512 add_times_log2(__m512 x, __m512 sum) {
    const __m512 least_normal = _mm512_set1_ps(1.17549435e-38f);
    const __m512 normal = _mm512_max_ps(least_normal, x); // a NaN stays: max gives its second operand then
    const __m512 mantissa = _mm512_getmant_ps(normal, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
    const __m512 t = _mm512_sub_ps(mantissa, _mm512_set1_ps(1.0f));
    __m512 y = _mm512_fmadd_ps(_mm512_set1_ps(LOG2_6), t, _mm512_set1_ps(LOG2_5));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(LOG2_4));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(LOG2_3));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(LOG2_2));
    y = _mm512_fmadd_ps(y, t, _mm512_set1_ps(LOG2_1));
    y = _mm512_fmadd_ps(y, t, _mm512_add_ps(_mm512_getexp_ps(normal), _mm512_set1_ps(LOG2_0)));
    return _mm512_fmadd_ps(x, y, sum);
}
#endif

#if defined(__AVX512F__)
// The square root instruction is slower than memory. An approximate reciprocal root and a step of Newton's method are
// faster, and as exact.
template <int HALF_POWERS>
static inline __m512 sharpened_lanes(__m512 x) {
    if (HALF_POWERS == 2) {
        return x;
    }
    if (HALF_POWERS == 4) {
        return _mm512_mul_ps(x, x);
    }
    // Smaller numbers count as 0: their power would be denormal, and denormals take a hundred times as long.
    const __m512 least = _mm512_set1_ps(1e-24f);
    const __m512 normal = _mm512_max_ps(least, x); // a NaN stays
    const __m512 r = _mm512_rsqrt14_ps(normal);
    const __m512 half = _mm512_mul_ps(normal, _mm512_set1_ps(0.5f));
    const __m512 reciprocal = _mm512_mul_ps(r, _mm512_fnmadd_ps(_mm512_mul_ps(half, r), r, _mm512_set1_ps(1.5f)));
    return _mm512_maskz_mul_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), normal, _mm512_mul_ps(normal, reciprocal));
}
#endif

// Clamps to 0..1. NaN stays.
static inline float clamped(float x) {
    return x < 0 ? 0 : x > 1 ? 1 : x;
}

// One pass over ROWS rows. Where wanted, it adds them to the column sums and gives the sum of p log2 p of each.
template <int ROWS, int HALF_POWERS, bool MASS, bool ENTROPY>
static inline void pass(const float * p, std::ptrdiff_t stride, int n, float * mass, double * sums) {
    float sum[ROWS] = {};
    int c = 0;
#if defined(__AVX512F__)
    __m512 lanes[ROWS];
    for (__m512 & lane : lanes) {
        lane = _mm512_setzero_ps();
    }
    for (; c + 16 <= n; c += 16) {
        __m512 column = _mm512_setzero_ps();
#    pragma GCC unroll 4
        for (int r = 0; r < ROWS; r++) {
            const __m512 x = _mm512_loadu_ps(p + r * stride + c);
            if (ENTROPY) {
                lanes[r] = add_times_log2(x, lanes[r]);
            }
            if (MASS) {
                column = _mm512_add_ps(column, sharpened_lanes<HALF_POWERS>(x));
            }
        }
        if (MASS) {
            _mm512_storeu_ps(mass + c, _mm512_add_ps(_mm512_loadu_ps(mass + c), column));
        }
    }
    for (int r = 0; r < ROWS; r++) {
        sums[r] = _mm512_reduce_add_ps(lanes[r]);
    }
#else
    for (int r = 0; r < ROWS; r++) {
        sums[r] = 0;
    }
    for (int r = 0; ENTROPY && r < ROWS; r++) {
        float part = 0;
#    pragma omp simd reduction(+ : part)
        for (int i = 0; i < n; i++) {
            part += times_log2(p[r * stride + i]);
        }
        sums[r] = part;
    }
    c = n;
    if (MASS) {
        add_rows<ROWS, HALF_POWERS>(p, stride, n, mass);
    }
#endif
    for (; c < n; c++) {
        for (int r = 0; r < ROWS; r++) {
            const float x = p[r * stride + c];
            sum[r] += ENTROPY ? times_log2(x) : 0.0f;
            if (MASS) {
                mass[c] += sharpened<HALF_POWERS>(x);
            }
        }
    }
    for (int r = 0; r < ROWS; r++) {
        sums[r] += sum[r];
    }
}

template <int ROWS, int HALF_POWERS>
static inline void some_rows(const AttentionStatsArgs & a, int head, int row, float * mass) {
    const float * const p = a.p + head * a.head_stride + row * a.row_stride;
    double sums[ROWS];
    if (!a.entropy) {
        if (mass && HALF_POWERS == 3) {
            pass<ROWS, HALF_POWERS, true, false>(p, a.row_stride, a.n_cells, mass, sums);
        } else if (mass) {
            add_rows<ROWS, HALF_POWERS>(p, a.row_stride, a.n_cells, mass);
        }
        return;
    }
    mass ? pass<ROWS, HALF_POWERS, true, true>(p, a.row_stride, a.n_cells, mass, sums)
         : pass<ROWS, HALF_POWERS, false, true>(p, a.row_stride, a.n_cells, mass, sums);
    for (int r = 0; r < ROWS; r++) {
        const float normalised = float(-sums[r] * LN_2 * a.inv_log_visible[row + r]);
        a.entropy[head * a.entropy_stride + row + r] = clamped(normalised);
    }
}

template <int HALF_POWERS>
static void attention_stats_of(const AttentionStatsArgs & a) {
    for (int h = 0; h < a.n_kv_heads * a.heads_per_kv; h++) {
        float * const mass = a.mass ? a.mass + h / a.heads_per_kv * a.mass_stride : nullptr;
        int r = 0;
        for (; r + 4 <= a.n_rows; r += 4) {
            some_rows<4, HALF_POWERS>(a, h, r, mass);
        }
        for (; r < a.n_rows; r++) {
            some_rows<1, HALF_POWERS>(a, h, r, mass);
        }
    }
}

void attention_stats(const AttentionStatsArgs & a) {
    switch (a.half_powers) {
    case 2:
        return attention_stats_of<2>(a);
    case 3:
        return attention_stats_of<3>(a);
    default:
        return attention_stats_of<4>(a);
    }
}

// A tile of scores is ROW_TILE queries by two vectors of cells. It stays in registers while one dimension after another
// is added.
constexpr int ROW_TILE = WIDTH == 16 ? 8 : WIDTH == 8 ? 6 : 4;
constexpr int CELL_TILE = 2 * WIDTH;

// scores[ROWS][stride] = queries * keys for one tile of cells. `keys` is [dim][stride], transposed.
template <int ROWS>
static inline void score_tile(const float * const * q, const float * keys, std::ptrdiff_t stride, int dim,
                              float * scores) {
    Vector sum[ROWS][2] = {};
    for (int i = 0; i < dim; i++) {
        const Vector k0 = load(keys + i * stride);
        const Vector k1 = load(keys + i * stride + WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            sum[r][0] += q[r][i] * k0;
            sum[r][1] += q[r][i] * k1;
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++) {
        *reinterpret_cast<Vector *>(scores + r * stride) = sum[r][0];
        *reinterpret_cast<Vector *>(scores + r * stride + WIDTH) = sum[r][1];
    }
}

// Turns a row of scores into probabilities, adds them to the mass, and gives back the row's entropy in nats.
template <int HALF_POWERS>
static inline float finish_row(float * s, const uint16_t * mask, int n, float scale, float cap, float * mass) {
    const float hidden = -std::numeric_limits<float>::infinity();
    // Where the maximum starts: in clang every OpenMP maximum does, in GCC at minus infinity.
    constexpr float NOTHING = std::numeric_limits<float>::lowest();
    float max = NOTHING;
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
            s[c] = mask[c] == HIDDEN ? hidden : s[c];
        }
    }
#pragma omp simd reduction(max : max)
    for (int c = 0; c < n; c++) {
        max = s[c] > max ? s[c] : max;
    }
    if (max == NOTHING) { // the row sees nothing, or only NaN, which the sums below would show
        float sum = 0;
        for (int c = 0; c < n; c++) {
            sum += s[c] == hidden ? 0.0f : s[c];
        }
        mass[0] += sum;
        return sum;
    }
    double sum = 0, weighted = 0; // H = log(sum) - weighted / sum
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
    std::vector<float> unused(a.mass ? 0 : size_t(a.n_cells));
    std::vector<float> keys(size_t(stride) * dim, 0.0f), scores(size_t(stride) * ROW_TILE);
    for (int h = 0; h < a.n_kv_heads * a.heads_per_kv; h++) {
        if (h % a.heads_per_kv == 0) {
            transpose_keys(a.keys, a.first_kv_head + h / a.heads_per_kv, a.n_cells, stride, keys.data());
        }
        float * const mass = a.mass ? a.mass + h / a.heads_per_kv * a.mass_stride : unused.data();
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
                const float entropy =
                    finish_row<HALF_POWERS>(scores.data() + r * stride, mask, a.n_cells, a.scale, a.cap, mass);
                if (a.entropy) {
                    const float normalised = entropy * a.inv_log_visible[r0 + r];
                    a.entropy[h * a.entropy_stride + r0 + r] = clamped(normalised);
                }
            }
        }
    }
}

void score_stats(const ScoreStatsArgs & a) {
    a.half_powers == 2 ? score_stats_of<2>(a) : a.half_powers == 3 ? score_stats_of<3>(a) : score_stats_of<4>(a);
}

// A plain pass: runs are short and values few, so the reads take most of the time.
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
