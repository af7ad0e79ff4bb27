// The fast kernels: loops the compiler turns into vectors, compiled once for each instruction set (see CMakeLists.txt),
// which names the namespace and the table. `omp simd` allows the reductions to be reordered, and nothing else.
#include "kernels.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>
#if defined(__F16C__)
#    include <immintrin.h>
#elif defined(__ARM_NEON)
#    include <arm_neon.h>
#endif

#ifndef KVMERGE_ISA
#    error "compile with -DKVMERGE_ISA=<namespace>"
#endif
#define KVMERGE_STRING2(x) #x
#define KVMERGE_STRING(x) KVMERGE_STRING2(x)

namespace kvmerge {
namespace KVMERGE_ISA {

static constexpr std::ptrdiff_t BLOCK = 512; // single-precision partial sums are added up in double

static inline float from_bits(int32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

static inline int32_t to_bits(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// ln(x) for normal x > 0, error about 2 ulp; finite for 0, so that 0 * log(0) is 0. Cephes logf polynomial.
static inline float log_positive(float x) {
    const int32_t bits = to_bits(x);
    const int32_t shifted = bits - 0x3f3504f3; // sqrt(1/2): mantissa in [sqrt(1/2), sqrt(2))
    const float e = float(shifted >> 23);
    const float m = from_bits(bits - (shifted & int32_t(0xff800000))) - 1.0f;
    float y = 7.0376836292e-2f;
    y = y * m - 1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m - 1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m - 1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m - 2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    const float z = m * m;
    y = y * m * z - 0.5f * z;
    return m + y + e * 0.693147180560f;
}

// exp(x) for x <= 88, error about 2 ulp; flushes to 0 below -87; NaN stays. Cephes expf polynomial.
static inline float exp_bounded(float x) {
    const float c = x >= -87.0f ? x : -87.0f;
    const float n = (c * 1.44269504089f + 12582912.0f) - 12582912.0f; // nearest integer
    float f = c - n * 0.693359375f;
    f = f + n * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * f + 1.3981999507e-3f;
    y = y * f + 8.3334519073e-3f;
    y = y * f + 4.1665795894e-2f;
    y = y * f + 1.6666665459e-1f;
    y = y * f + 5.0000001201e-1f;
    y = y * f * f + f + 1.0f;
    const float scaled = y * from_bits((int32_t(n) + 127) << 23);
    return x < -87.0f ? 0.0f : scaled + (x - x);
}

// Cosine and sine of an angle given in turns, error about 1e-7. The angle is reduced in double: thousands of radians have no
// good digits left in single.
static inline void cos_sin_turns(double turns, float & c, float & s) {
    const double magic = 6755399441055744.0; // adding it rounds to an integer
    const double quarter = (turns * 4.0 + magic) - magic;
    const float x = float((turns * 4.0 - quarter) * 1.57079632679489662);
    const double whole = (quarter * 0.25 + magic) - magic;
    const int q = int(quarter - whole * 4.0) & 3;
    const float z = x * x;
    const float sine = x + x * z * (-1.6666654611e-1f + z * (8.3321608736e-3f - z * 1.9515295891e-4f));
    const float cosine =
        1.0f - 0.5f * z + z * z * (4.166664568298827e-2f + z * (-1.388731625493765e-3f + z * 2.443315711809948e-5f));
    const float a = (q & 1) ? sine : cosine;
    const float b = (q & 1) ? cosine : sine;
    c = (q == 1 || q == 2) ? -a : a;
    s = (q >= 2) ? -b : b;
}

// Adds up to four rows to the column sums: one load and store of a sum for four of them.
template <int ROWS>
static inline void add_rows(const float * p, std::ptrdiff_t stride, int n, float * sum) {
#pragma omp simd
    for (int c = 0; c < n; c++) {
        float x = p[c];
        if (ROWS > 1) {
            x = (x + p[stride + c]) + (p[2 * stride + c] + p[3 * stride + c]);
        }
        sum[c] += x;
    }
}

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

static void attention_stats(const AttentionStatsArgs & a) {
    for (int h = 0; h < a.n_heads; h++) {
        const float * const head = a.p + h * a.head_stride;
        for (int r0 = 0; r0 < a.n_rows; r0 += 4) {
            const int rows = std::min(4, a.n_rows - r0);
            const float * const p = head + r0 * a.row_stride;
            if (rows == 4) {
                add_rows<4>(p, a.row_stride, a.n_cells, a.mass);
            }
            for (int r = 0; r < rows; r++) {
                const float * const row = p + r * a.row_stride;
                if (rows < 4) {
                    add_rows<1>(row, 0, a.n_cells, a.mass);
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
        mass[c] += s[c] * inverse;
    }
    return float(std::log(sum) - weighted / sum);
}

static void score_stats(const ScoreStatsArgs & a) {
    const std::ptrdiff_t stride = (a.n_cells + CELL_TILE - 1) / CELL_TILE * CELL_TILE;
    std::vector<float> keys(size_t(stride) * a.dim, 0.0f), scores(size_t(stride) * ROW_TILE);
    for (int c = 0; c < a.n_cells; c++) {
        for (int i = 0; i < a.dim; i++) {
            keys[i * stride + c] = a.keys[std::ptrdiff_t(c) * a.dim + i];
        }
    }
    for (int h = 0; h < a.n_heads; h++) {
        for (int r0 = 0; r0 < a.n_rows; r0 += ROW_TILE) {
            const int rows = std::min(ROW_TILE, a.n_rows - r0);
            const float * q[ROW_TILE];
            for (int r = 0; r < ROW_TILE; r++) { // the last tile repeats its last row
                q[r] = a.q + h * a.head_stride + (r0 + std::min(r, rows - 1)) * a.row_stride;
            }
            for (std::ptrdiff_t c = 0; c < stride; c += CELL_TILE) {
                score_tile<ROW_TILE>(q, keys.data() + c, stride, a.dim, scores.data() + c);
            }
            for (int r = 0; r < rows; r++) {
                const uint16_t * mask = a.mask ? a.mask + (r0 + r) * a.mask_stride : nullptr;
                const float entropy = finish_row(scores.data() + r * stride, mask, a.n_cells, a.scale, a.cap, a.mass);
                if (a.entropy) {
                    const float normalised = entropy * a.inv_log_visible[r0 + r];
                    a.entropy[h * a.entropy_stride + r0 + r] = normalised < 0 ? 0 : normalised > 1 ? 1 : normalised;
                }
            }
        }
    }
}

// Adds the products of ROWS queries to two rows of the upper triangle, from a column that is a multiple of the vector on.
template <int ROWS>
static inline void add_products(const float * q, std::ptrdiff_t stride, int i, int d, float * second) {
    constexpr int VECTOR = 16;
    const int pair = i + 1 < d;
    float * const row0 = second + std::ptrdiff_t(i) * d;
    float * const row1 = row0 + (pair ? d : 0);
    float x0[ROWS], x1[ROWS];
    for (int r = 0; r < ROWS; r++) {
        x0[r] = q[r * stride + i];
        x1[r] = pair ? q[r * stride + i + 1] : 0.0f;
    }
#pragma omp simd
    for (int j = i / VECTOR * VECTOR; j < d; j++) {
        float y0 = 0, y1 = 0;
        for (int r = 0; r < ROWS; r++) {
            y0 += x0[r] * q[r * stride + j];
            y1 += x1[r] * q[r * stride + j];
        }
        if (pair) {
            row0[j] += y0;
            row1[j] += y1;
        } else {
            row0[j] += y0;
        }
    }
}

static void query_moments(const QueryMomentsArgs & a) {
    const int d = a.dim;
    for (int h = 0; h < a.n_heads; h++) {
        const float * const head = a.q + h * a.head_stride;
        int r = 0;
        for (; r + 4 <= a.n_rows; r += 4) {
            add_rows<4>(head + r * a.row_stride, a.row_stride, d, a.sum);
            for (int i = 0; i < d; i += 2) {
                add_products<4>(head + r * a.row_stride, a.row_stride, i, d, a.second);
            }
        }
        for (; r < a.n_rows; r++) {
            add_rows<1>(head + r * a.row_stride, 0, d, a.sum);
            for (int i = 0; i < d; i += 2) {
                add_products<1>(head + r * a.row_stride, a.row_stride, i, d, a.second);
            }
        }
    }
    for (int i = 0; i < d; i++) { // the lower triangle follows the upper
        for (int j = 0; j < i; j++) {
            a.second[std::ptrdiff_t(i) * d + j] = a.second[std::ptrdiff_t(j) * d + i];
        }
    }
}

static void fold_direction(const FoldDirectionArgs & a) {
    const int d = a.dim;
    double trace = 0;
    for (int i = 0; i < d; i++) {
        trace += a.second[std::ptrdiff_t(i) * d + i];
    }
    std::fill(a.u, a.u + d, 0.0f);
    if (!(trace > 0)) {
        return;
    }
    // Right-looking Cholesky on the upper triangle, A = U'U: every inner loop runs along a row.
    std::vector<double> upper(size_t(d) * d), x(d);
    for (int i = 0; i < d; i++) {
        for (int j = i; j < d; j++) {
            upper[size_t(i) * d + j] = a.second[std::ptrdiff_t(i) * d + j];
        }
        upper[size_t(i) * d + i] += a.ridge * trace / d;
        x[i] = a.mean[i];
    }
    for (int i = 0; i < d; i++) {
        double * const row = upper.data() + size_t(i) * d;
        const double inverse = 1 / std::sqrt(row[i]);
        for (int j = i; j < d; j++) {
            row[j] *= inverse;
        }
        x[i] /= row[i];
        for (int r = i + 1; r < d; r++) {
            double * const below = upper.data() + size_t(r) * d;
            const double f = row[r];
#pragma omp simd
            for (int j = r; j < d; j++) {
                below[j] -= f * row[j];
            }
            x[r] -= f * x[i];
        }
    }
    for (int i = d - 1; i >= 0; i--) {
        const double * const row = upper.data() + size_t(i) * d;
        double sum = x[i];
        for (int j = i + 1; j < d; j++) {
            sum -= row[j] * x[j];
        }
        x[i] = sum / row[i];
        a.u[i] = float(x[i]);
    }
}

static void merge_group(const MergeGroupArgs & a) {
    std::fill(a.key, a.key + a.dim_k, 0.0f);
    std::fill(a.value, a.value + a.dim_v, 0.0f);
    const int half = a.n_rot / 2;
    for (int m = 0; m < a.n; m++) {
        const float * const k = a.keys + std::ptrdiff_t(m) * a.dim_k;
        const float * const v = a.values + std::ptrdiff_t(m) * a.dim_v;
        const float w = a.weight[m];
        float * const key = a.key;
        float * const value = a.value;
        const int plain = a.delta[m] == 0 ? 0 : a.n_rot;
#pragma omp simd
        for (int i = plain; i < a.dim_k; i++) {
            key[i] += w * k[i];
        }
        for (int i = 0; i < (plain ? half : 0); i++) {
            float c, s;
            cos_sin_turns(a.delta[m] * a.freq[i] * 0.159154943091895336, c, s);
            const int x = a.neox ? i : 2 * i;
            const int y = a.neox ? i + half : 2 * i + 1;
            key[x] += w * (k[x] * c - k[y] * s);
            key[y] += w * (k[x] * s + k[y] * c);
        }
#pragma omp simd
        for (int i = 0; i < a.dim_v; i++) {
            value[i] += w * v[i];
        }
    }
}

static void step_distance(const StepDistanceArgs & a) {
    for (int i = 0; i + 1 < a.n; i++) {
        const float * const x = a.rows + std::ptrdiff_t(i) * a.dim;
        const float * const y = x + a.dim;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int j = 0; j < a.dim; j++) {
            const float d = x[j] - y[j];
            sum += d * d;
        }
        a.out[i] = sum;
    }
}

static inline float half_to_float_one(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16;
    const uint32_t rest = h & 0x7fff;
    if (rest >= 0x7c00) {
        return from_bits(int32_t(sign | 0x7f800000 | ((rest & 0x3ff) << 13)));
    }
    // 2^112 shifts the exponent bias, subnormals included.
    const float x = from_bits(int32_t(rest << 13)) * from_bits(int32_t((127 + 112) << 23));
    return from_bits(int32_t(sign | uint32_t(to_bits(x))));
}

static inline uint16_t float_to_half_one(float x) {
    const uint32_t bits = uint32_t(to_bits(x));
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) {
        return uint16_t(sign | 0x7e00);
    }
    if (rest >= 0x477ff000) { // 65520
        return uint16_t(sign | 0x7c00);
    }
    if (rest < 0x38800000) { // below 2^-14: adding .5 leaves the rounded subnormal in the low mantissa bits
        return uint16_t(sign | uint32_t(to_bits(from_bits(int32_t(rest)) + 0.5f) - 0x3f000000));
    }
    const uint32_t odd = (rest >> 13) & 1;
    return uint16_t(sign | ((rest + 0xfff + odd - (uint32_t(112) << 23)) >> 13));
}

static void half_to_float(const HalfToFloatArgs & a) {
    std::ptrdiff_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= a.n; i += 8) {
        _mm256_storeu_ps(a.out + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(a.in + i))));
    }
#elif defined(__ARM_NEON)
    for (; i + 4 <= a.n; i += 4) {
        vst1q_f32(a.out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(a.in + i))));
    }
#endif
    for (; i < a.n; i++) {
        a.out[i] = half_to_float_one(a.in[i]);
    }
}

static void float_to_half(const FloatToHalfArgs & a) {
    std::ptrdiff_t i = 0;
#if defined(__F16C__)
    for (; i + 8 <= a.n; i += 8) {
        _mm_storeu_si128((__m128i *)(a.out + i), _mm256_cvtps_ph(_mm256_loadu_ps(a.in + i), _MM_FROUND_TO_NEAREST_INT));
    }
#elif defined(__ARM_NEON)
    for (; i + 4 <= a.n; i += 4) {
        vst1_u16(a.out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(a.in + i))));
    }
#endif
    for (; i < a.n; i++) {
        a.out[i] = float_to_half_one(a.in[i]);
    }
}

static void log_sum_exp(const LogSumExpArgs & a) {
    float max = a.x[0];
#pragma omp simd reduction(max : max)
    for (std::ptrdiff_t i = 0; i < a.n; i++) {
        max = a.x[i] > max ? a.x[i] : max;
    }
    double sum = 0;
    for (std::ptrdiff_t i0 = 0; i0 < a.n; i0 += BLOCK) {
        const std::ptrdiff_t i1 = std::min(a.n, i0 + BLOCK);
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (std::ptrdiff_t i = i0; i < i1; i++) {
            part += exp_bounded(a.x[i] - max);
        }
        sum += part;
    }
    *a.lse = max + std::log(sum);
    std::ptrdiff_t i = 0;
    while (i < a.n - 1 && a.x[i] != max) {
        i++;
    }
    *a.argmax = i;
}

static void kl_row(const KlRowArgs & a) {
    // KL(P||Q) = sum e^b (b - x) / S - log S + lse, with b the stored log probability and S = sum e^b.
    double total = 0, cross = 0;
    const float lse = float(a.lse);
    for (std::ptrdiff_t i0 = 0; i0 < a.n; i0 += BLOCK) {
        const std::ptrdiff_t i1 = std::min(a.n, i0 + BLOCK);
        float part_total = 0, part_cross = 0;
#pragma omp simd reduction(+ : part_total, part_cross)
        for (std::ptrdiff_t i = i0; i < i1; i++) {
            const float log_p = a.base_min + a.base_scale * float(a.base[i]);
            const float p = exp_bounded(log_p);
            part_total += p;
            part_cross += p * (log_p - (a.x[i] - lse));
        }
        total += part_total;
        cross += part_cross;
    }
    *a.kl = cross / total - std::log(total) + (a.lse - double(lse));
}

const KernelTable & table() {
    static const KernelTable table = {KVMERGE_STRING(KVMERGE_ISA),
#define KVMERGE_ENTRY(name, Args) name,
                                      KVMERGE_KERNELS(KVMERGE_ENTRY)
#undef KVMERGE_ENTRY
    };
    return table;
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
