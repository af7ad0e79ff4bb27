// Attention mass and row entropy, from the probabilities or from the queries and keys.
#include "fast.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
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
// Arrays of vectors are aligned by hand below: clang forgets in a template that Vector need not be.

typedef int32_t Integers __attribute__((vector_size(WIDTH * sizeof(int32_t)), may_alias));
typedef uint16_t Shorts __attribute__((vector_size(WIDTH * sizeof(uint16_t)), aligned(2), may_alias));

static inline Vector all(float x) {
    return Vector{} + x;
}

// exp(x), 0 below SMALLEST, where powers of it would be denormal, and denormals take a hundred times as long. As
// exp_bounded; in explicit vectors, since the compiler keeps the sums over them in memory otherwise.
static inline Vector exp_lanes(Vector x) {
    constexpr float SMALLEST = -27.5f;
    const Vector c = x < SMALLEST ? all(SMALLEST) : x; // a NaN stays
    const Vector n = (c * 1.44269504089f + 12582912.0f) - 12582912.0f;
    Vector f = c - n * 0.693359375f;
    f = f + n * 2.12194440e-4f;
    Vector y = all(1.9875691500e-4f);
    y = y * f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.0f;
    const Integers exponent = (__builtin_convertvector(n, Integers) + 127) << 23;
    return x < SMALLEST ? Vector{} : y * reinterpret_cast<const Vector &>(exponent) + (x - x);
}

// The elements of a and b in turn: of their lower halves, of their upper halves.
static inline void interleave(Vector a, Vector b, Vector & lower, Vector & upper) {
#if defined(__AVX512F__)
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8);
    lower = _mm512_permutex2var_ps(a, low, b);
    upper = _mm512_permutex2var_ps(a, high, b);
#elif defined(__AVX2__)
    const __m256 even = _mm256_unpacklo_ps(a, b), odd = _mm256_unpackhi_ps(a, b); // of each half of 128 bits
    lower = _mm256_permute2f128_ps(even, odd, 0x20);
    upper = _mm256_permute2f128_ps(even, odd, 0x31);
#else
    lower = Vector{a[0], b[0], a[1], b[1]};
    upper = Vector{a[2], b[2], a[3], b[3]};
#endif
}

// Transposes a square of vectors by perfect shuffles.
static inline void transpose(Vector (&x)[WIDTH]) {
    for (int width = WIDTH; width > 1; width /= 2) {
        alignas(sizeof(Vector)) Vector y[WIDTH];
#pragma GCC unroll 8
        for (int i = 0; i < WIDTH / 2; i++) {
            interleave(x[i], x[i + WIDTH / 2], y[2 * i], y[2 * i + 1]);
        }
        for (int i = 0; i < WIDTH; i++) {
            x[i] = y[i];
        }
    }
}

// Turns the keys of a tile's cells into [dim][CELL_TILE]; row(cell of the tile) is where a key's elements begin. Whole
// vectors of them alone: gives back how many elements were turned.
template <class Row>
static std::ptrdiff_t turn_tile(const Row & row, std::ptrdiff_t dim, float * packed) {
    const std::ptrdiff_t whole = dim / WIDTH * WIDTH;
    for (int half = 0; half < CELL_TILE; half += WIDTH) {
        for (std::ptrdiff_t i = 0; i < whole; i += WIDTH) {
            alignas(sizeof(Vector)) Vector x[WIDTH];
            for (int c = 0; c < WIDTH; c++) {
                x[c] = load(row(half + c) + i);
            }
            transpose(x);
            for (int j = 0; j < WIDTH; j++) {
                store(packed + (i + j) * CELL_TILE + half, x[j]);
            }
        }
    }
    return whole;
}

// The keys of a head, tile after tile: [n_cells / CELL_TILE, rounded up][dim][CELL_TILE].
static void pack_keys(const CellView & view, int head, int n_cells, float * packed) {
    const std::ptrdiff_t dim = view.dim;
    int c0 = 0;
    if (!view.transposed && !is_quantised(view.type) && dim % WIDTH == 0) { // as they lie, without a copy as floats
        with_elements(view.type, view.data, [&](const auto * element) {
            const char * const first = static_cast<const char *>(view.data) + bytes_of(view.type, size_t(head) * dim);
            for (; c0 + CELL_TILE <= n_cells; c0 += CELL_TILE, packed += CELL_TILE * dim) {
                const auto row = [&](int c) {
                    return reinterpret_cast<decltype(element)>(first + std::ptrdiff_t(c0 + c) * view.cell_bytes);
                };
                turn_tile(row, dim, packed);
            }
        });
    }
    std::vector<float> tile(size_t(c0 < n_cells ? CELL_TILE * dim : 0), 0.0f); // [CELL_TILE][dim]
    int32_t cells[CELL_TILE];
    for (; c0 < n_cells; c0 += CELL_TILE, packed += CELL_TILE * dim) {
        const int n = std::min(CELL_TILE, n_cells - c0);
        std::iota(cells, cells + n, c0);
        gather_cells({view, head, cells, n, tile.data()});
        const float * const rows = tile.data();
        std::ptrdiff_t i = turn_tile([&](int c) { return rows + c * dim; }, dim, packed);
        for (; i < dim; i++) {
            for (int c = 0; c < CELL_TILE; c++) {
                packed[i * CELL_TILE + c] = rows[c * dim + i];
            }
        }
    }
}

// sum[row][half of the tile] = queries * keys. Queries are [dim][ROWS], keys [dim][CELL_TILE].
template <int ROWS>
static inline void score_tile(const float * q, const float * keys, int dim, Vector (&sum)[ROWS][2]) {
    for (int i = 0; i < dim; i++, q += ROWS, keys += CELL_TILE) {
        const Vector k0 = load(keys), k1 = load(keys + WIDTH);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            sum[r][0] += q[r] * k0;
            sum[r][1] += q[r] * k1;
        }
    }
}

// Some rows of one head's queries. Of the power 1.5, a row of `scores` becomes the roots of exp(score - maximum): their
// squares are summed, their third powers are the mass, and no root is drawn.
template <int ROWS, int HALF_POWERS>
struct ScoreRows {
    const ScoreStatsArgs & a;
    std::ptrdiff_t stride; // cells, rounded up to tiles
    float * scores;        // [ROWS][stride]
    float * packed;        // [dim][ROWS]

    // Rows first..., as many as `rows`; the last is repeated up to ROWS.
    void run(int head, int first, int rows, const float * keys, float * mass) {
        alignas(sizeof(Vector)) Vector max[ROWS];
        score(head, first, rows, keys, max);
        float weight[ROWS] = {};
        for (int r = 0; r < rows; r++) {
            const float entropy = exponentiate(scores + r * stride, max[r], weight[r]);
            if (a.entropy) {
                a.entropy[head * a.entropy_stride + first + r] = clamped(entropy * a.inv_log_visible[first + r]);
            }
        }
        if (!a.mass) {
            return;
        }
        for (std::ptrdiff_t c = 0; c < stride; c += WIDTH) {
            Vector sum = load(mass + c);
#pragma GCC unroll 8
            for (int r = 0; r < ROWS; r++) {
                if (r < rows) {
                    const Vector e = load(scores + r * stride + c);
                    sum += weight[r] * (HALF_POWERS == 2 ? e : HALF_POWERS == 3 ? e * e * e : e * e);
                }
            }
            store(mass + c, sum);
        }
    }

  private:
    void score(int head, int first, int rows, const float * keys, Vector (&max)[ROWS]) {
        const int dim = a.keys.dim;
        for (int r = 0; r < ROWS; r++) {
            const float * q = a.q + head * a.head_stride + (first + std::min(r, rows - 1)) * a.row_stride;
            for (int i = 0; i < dim; i++) {
                packed[i * ROWS + r] = q[i] * a.scale;
            }
            max[r] = all(std::numeric_limits<float>::lowest());
        }
        for (std::ptrdiff_t c = 0; c < stride; c += CELL_TILE, keys += CELL_TILE * dim) {
            alignas(sizeof(Vector)) Vector sum[ROWS][2] = {};
            score_tile<ROWS>(packed, keys, dim, sum);
            const bool hides = a.mask || c + CELL_TILE > a.n_cells;
            for (int r = 0; r < rows; r++) {
                float * const to = scores + r * stride + c;
                if (a.cap != 0) {
                    sum[r][0] = capped(sum[r][0]);
                    sum[r][1] = capped(sum[r][1]);
                }
                if (hides) {
                    hide(first + r, c, sum[r]);
                }
                max[r] = sum[r][0] > max[r] ? sum[r][0] : max[r];
                max[r] = sum[r][1] > max[r] ? sum[r][1] : max[r];
                store(to, sum[r][0]);
                store(to + WIDTH, sum[r][1]);
            }
        }
    }

    Vector capped(Vector x) const {
        for (int i = 0; i < WIDTH; i++) {
            x[i] = a.cap * std::tanh(x[i] / a.cap);
        }
        return x;
    }

    // Cells that the row does not see, and those behind the last, get minus infinity.
    void hide(int row, std::ptrdiff_t c, Vector (&x)[2]) const {
        const uint16_t * mask = a.mask ? a.mask + row * a.mask_stride + c : nullptr;
        uint16_t last[CELL_TILE] = {};
        if (const std::ptrdiff_t n = a.n_cells - c; n < CELL_TILE) {
            if (mask) {
                std::copy(mask, mask + n, last);
            }
            std::fill(last + n, last + CELL_TILE, HIDDEN);
            mask = last;
        }
        const Vector hidden = all(-std::numeric_limits<float>::infinity());
        for (int half = 0; half < 2; half++) {
            const Shorts bits = *reinterpret_cast<const Shorts *>(mask + half * WIDTH);
            x[half] = __builtin_convertvector(bits, Integers) == int32_t(HIDDEN) ? hidden : x[half];
        }
    }

    // Gives back the row's entropy in nats, and what its exponentials' powers are to be multiplied with.
    float exponentiate(float * s, Vector lanes, float & weight) const {
        float max = lanes[0];
        for (int i = 1; i < WIDTH; i++) {
            max = lanes[i] > max ? lanes[i] : max;
        }
        constexpr float PART = HALF_POWERS == 3 ? 0.5f : 1.0f;
        double sum = 0, weighted = 0; // H = log(sum) - weighted / sum
        for (std::ptrdiff_t c0 = 0; c0 < stride; c0 += BLOCK) {
            const std::ptrdiff_t c1 = std::min(stride, c0 + BLOCK);
            Vector part = {}, part_weighted = {};
            for (std::ptrdiff_t c = c0; c < c1; c += WIDTH) {
                const Vector y = load(s + c) - max;
                const Vector e = exp_lanes(y * PART);
                const Vector p = HALF_POWERS == 3 ? e * e : e;
                part += p;
                if (a.entropy) {
                    part_weighted += p == 0.0f ? p : p * y;
                }
                store(s + c, e);
            }
            sum += added_up(part);
            weighted += added_up(part_weighted);
        }
        if (sum == 0) { // the row sees nothing
            weight = 0;
            return 0;
        }
        const double inverse = 1 / sum;
        weight = float(HALF_POWERS == 2   ? inverse
                       : HALF_POWERS == 3 ? inverse * std::sqrt(inverse)
                                          : inverse * inverse);
        return float(std::log(sum) - weighted * inverse);
    }
};

template <int HALF_POWERS>
static void score_stats_of(const ScoreStatsArgs & a) {
    const std::ptrdiff_t stride = (a.n_cells + CELL_TILE - 1) / CELL_TILE * CELL_TILE;
    const size_t dim = size_t(a.keys.dim);
    // Kept from call to call, as planning keeps its own: new memory is zeroed, and its pages are faults.
    thread_local std::vector<float> keys, scores, queries, mass;
    keys.resize(std::max(keys.size(), size_t(stride) * dim));
    scores.resize(std::max(scores.size(), size_t(stride) * ROW_TILE));
    queries.resize(std::max(queries.size(), dim * ROW_TILE));
    mass.resize(std::max(mass.size(), size_t(stride)));
    ScoreRows<ROW_TILE, HALF_POWERS> some{a, stride, scores.data(), queries.data()};
    ScoreRows<1, HALF_POWERS> one{a, stride, scores.data(), queries.data()};
    for (int kv_head = 0; kv_head < a.n_kv_heads; kv_head++) {
        pack_keys(a.keys, a.first_kv_head + kv_head, a.n_cells, keys.data());
        std::fill_n(mass.begin(), stride, 0.0f);
        for (int h = kv_head * a.heads_per_kv; h < (kv_head + 1) * a.heads_per_kv; h++) {
            for (int r = 0; r < a.n_rows; r += ROW_TILE) {
                const int rows = std::min(ROW_TILE, a.n_rows - r);
                rows == 1 ? one.run(h, r, 1, keys.data(), mass.data()) : some.run(h, r, rows, keys.data(), mass.data());
            }
        }
        for (int c = 0; a.mass && c < a.n_cells; c++) {
            a.mass[kv_head * a.mass_stride + c] += a.row_weight * mass[size_t(c)];
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
