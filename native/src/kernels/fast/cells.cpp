// Reading and writing cells.
#include "fast.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

namespace kvmerge {
namespace KVMERGE_ISA {

uint16_t one_to_half(float x) {
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

static void float_to_half(const float * in, std::ptrdiff_t n, uint16_t * out) {
    std::ptrdiff_t i = 0;
#if defined(__AVX512F__)
    for (; i + 16 <= n; i += 16) {
        _mm256_storeu_si256((__m256i *)(out + i), _mm512_cvtps_ph(_mm512_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
    }
#endif
#if defined(__F16C__)
    for (; i + 8 <= n; i += 8) {
        _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT));
    }
#elif defined(__ARM_NEON)
    for (; i + 4 <= n; i += 4) {
        vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(in + i))));
    }
#endif
    for (; i < n; i++) {
        out[i] = one_to_half(in[i]);
    }
}

// Round to nearest even; NaN stays NaN.
static void float_to_bf16(const float * in, std::ptrdiff_t n, uint16_t * out) {
    for (std::ptrdiff_t i = 0; i < n; i++) {
        uint32_t bits;
        std::memcpy(&bits, in + i, sizeof bits);
        const bool nan = (bits & 0x7fffffff) > 0x7f800000;
        out[i] = uint16_t(nan ? (bits >> 16) | 64 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
}

void to_float(int32_t type, const void * in, std::ptrdiff_t n, float * out) {
    if (n == 0) {
        return; // an empty vector's memory may be null
    }
    if (is_quantised(type)) {
        quants_to_float(type, in, n, out);
        return;
    }
    with_elements(type, in, [&](const auto * x) { to_floats(x, n, out); });
}

static void from_float(int32_t type, const float * in, std::ptrdiff_t n, void * out) {
    if (n == 0) {
        return;
    }
    switch (type) {
    case CELL_F32:
        std::memcpy(out, in, size_t(n) * sizeof(float));
        return;
    case CELL_F16:
        float_to_half(in, n, static_cast<uint16_t *>(out));
        return;
    case CELL_BF16:
        float_to_bf16(in, n, static_cast<uint16_t *>(out));
        return;
    default:
        float_to_quants(type, in, n, out);
    }
}

static char * row_of(const CellView & v, int head, int32_t cell) {
    return static_cast<char *>(v.data) + std::ptrdiff_t(cell) * v.cell_bytes + bytes_of(v.type, size_t(head) * v.dim);
}

// Where cells are transposed, those of a head lie side by side along a dimension. They are walked that way so that
// loads share cache lines, and TILE at a time so that stores do too.
constexpr int TILE = 128;

// Turns some cells of a head into rows: cell from[i] goes to row to[i] of out, [][dim]. `next` is the cell that the
// caller reads next, which is prefetched; 0 for none.
template <class T>
static void turn(const CellView & view, const T * head, const int32_t * from, const int32_t * to, int n, int next,
                 float * out) {
    const int dim = view.dim;
    int j = 0;
    // Four dimensions at once: a cell's number is read once for them, and its four elements are written as one.
    for (; j + 4 <= dim; j += 4) {
        const T *const r0 = head + std::ptrdiff_t(j) * view.n_cells, *const r1 = r0 + view.n_cells,
                       *const r2 = r1 + view.n_cells, *const r3 = r2 + view.n_cells;
        if (next) {
            for (const T * row : {r0, r1, r2, r3}) {
                __builtin_prefetch(row + next);
            }
        }
        for (int i = 0; i < n; i++) {
            const int32_t c = from[i];
            const T four[4] = {r0[c], r1[c], r2[c], r3[c]};
            four_to_floats(four, out + std::ptrdiff_t(to[i]) * dim + j);
        }
    }
    for (; j < dim; j++) {
        const T * row = head + std::ptrdiff_t(j) * view.n_cells;
        for (int i = 0; i < n; i++) {
            out[std::ptrdiff_t(to[i]) * dim + j] = value_of(row[from[i]]);
        }
    }
}

// For most of the cells there are, in any order. They are read as they lie, which loads each cache line once.
template <class T>
static void turn_all(const CellView & view, const T * head, const int32_t * cells, int n, float * out) {
    constexpr int LINE = 64 / sizeof(T);
    std::vector<int32_t> row(size_t(view.n_cells), -1);
    for (int i = 0; i < n; i++) {
        row[size_t(cells[i])] = i;
    }
    for (int c0 = 0; c0 < view.n_cells; c0 += LINE) {
        int32_t from[LINE], to[LINE];
        int count = 0;
        for (int c = c0; c < std::min(c0 + LINE, view.n_cells); c++) {
            if (row[size_t(c)] >= 0) {
                from[count] = c;
                to[count++] = row[size_t(c)];
            }
        }
        turn(view, head, from, to, count, c0 + LINE < view.n_cells ? c0 + LINE : 0, out);
    }
    for (int i = 0; i < n; i++) { // a cell that is wanted twice was written once
        if (const int written = row[size_t(cells[i])]; written != i) {
            std::memcpy(out + std::ptrdiff_t(i) * view.dim, out + std::ptrdiff_t(written) * view.dim,
                        size_t(view.dim) * sizeof(float));
        }
    }
}

template <class T>
static void read_transposed(const GatherCellsArgs & a, const T * data) {
    const T * const head = data + std::ptrdiff_t(a.head) * a.view.dim * a.view.n_cells;
    if (a.n > a.view.n_cells / 4) {
        turn_all(a.view, head, a.cells, a.n, a.out);
        return;
    }
    int32_t to[TILE];
    std::iota(to, to + TILE, 0);
    for (int i = 0; i < a.n; i += TILE) {
        turn(a.view, head, a.cells + i, to, std::min(TILE, a.n - i), 0, a.out + std::ptrdiff_t(i) * a.view.dim);
    }
}

template <class T>
static void write_transposed(const ScatterCellsArgs & a) {
    const int dim = a.view.dim;
    T * const head = static_cast<T *>(a.view.data) + std::ptrdiff_t(a.head) * dim * a.view.n_cells;
    std::vector<T> tile(size_t(TILE) * dim);
    for (int i0 = 0; i0 < a.n; i0 += TILE) {
        const int count = std::min(TILE, a.n - i0);
        from_float(a.view.type, a.in + size_t(i0) * dim, std::ptrdiff_t(count) * dim, tile.data());
        int j = 0;
        for (; j + 4 <= dim; j += 4) {
            T *const r0 = head + std::ptrdiff_t(j) * a.view.n_cells, *const r1 = r0 + a.view.n_cells,
                     *const r2 = r1 + a.view.n_cells, *const r3 = r2 + a.view.n_cells;
            for (int i = 0; i < count; i++) {
                const int32_t c = a.cells[i0 + i];
                T four[4];
                std::memcpy(four, tile.data() + std::ptrdiff_t(i) * dim + j, sizeof four);
                r0[c] = four[0], r1[c] = four[1], r2[c] = four[2], r3[c] = four[3];
            }
        }
        for (; j < dim; j++) {
            T * row = head + std::ptrdiff_t(j) * a.view.n_cells;
            for (int i = 0; i < count; i++) {
                row[a.cells[i0 + i]] = tile[size_t(i) * dim + j];
            }
        }
    }
}

void gather_cells(const GatherCellsArgs & a) {
    if (a.view.transposed) {
        with_elements(a.view.type, a.view.data, [&](const auto * x) { read_transposed(a, x); });
        return;
    }
    // Rows are prefetched: they lie in no order that the processor could foresee.
    constexpr int AHEAD = 16;
    const std::ptrdiff_t bytes = std::ptrdiff_t(bytes_of(a.view.type, size_t(a.view.dim)));
    for (int i = 0; i < a.n; i++) {
        if (i + AHEAD < a.n) {
            const char * const row = row_of(a.view, a.head, a.cells[i + AHEAD]);
            for (std::ptrdiff_t b = 0; b < bytes; b += 64) {
                __builtin_prefetch(row + b);
            }
        }
        to_float(a.view.type, row_of(a.view, a.head, a.cells[i]), a.view.dim, a.out + size_t(i) * a.view.dim);
    }
}

void scatter_cells(const ScatterCellsArgs & a) {
    if (a.view.transposed) {
        a.view.type == CELL_F32 ? write_transposed<uint32_t>(a) : write_transposed<uint16_t>(a);
        return;
    }
    for (int i = 0; i < a.n; i++) {
        from_float(a.view.type, a.in + size_t(i) * a.view.dim, a.view.dim, row_of(a.view, a.head, a.cells[i]));
    }
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
