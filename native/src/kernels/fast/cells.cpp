// Cells: reading, writing and merging them.
#include "fast.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

namespace kvmerge {
namespace KVMERGE_ISA {

// ggml's block_q8_0: 32 signed bytes and their scale in half precision.
constexpr int Q8_0_BLOCK = 32;
struct BlockQ8_0 {
    uint16_t scale;
    int8_t x[Q8_0_BLOCK];
};
static_assert(sizeof(BlockQ8_0) == 34, "as ggml lays it out");

static float one_to_float(uint16_t half) {
    float x;
    half_to_float({&half, &x, 1});
    return x;
}

static uint16_t one_to_half(float x) {
    uint16_t half;
    float_to_half({&x, &half, 1});
    return half;
}

static void q8_0_to_float(const BlockQ8_0 * in, int n, float * out) {
    for (int b = 0; b < n / Q8_0_BLOCK; b++) {
        const float scale = one_to_float(in[b].scale);
        for (int i = 0; i < Q8_0_BLOCK; i++) {
            out[b * Q8_0_BLOCK + i] = scale * in[b].x[i];
        }
    }
}

// As ggml's quantize_row_q8_0_ref.
static void float_to_q8_0(const float * in, int n, BlockQ8_0 * out) {
    for (int b = 0; b < n / Q8_0_BLOCK; b++) {
        const float * x = in + b * Q8_0_BLOCK;
        float largest = 0;
        for (int i = 0; i < Q8_0_BLOCK; i++) {
            largest = std::max(largest, std::fabs(x[i]));
        }
        const float scale = largest / 127;
        const float inverse = scale != 0 ? 1 / scale : 0;
        out[b].scale = one_to_half(scale);
        for (int i = 0; i < Q8_0_BLOCK; i++) {
            out[b].x[i] = int8_t(std::round(x[i] * inverse));
        }
    }
}

static void bf16_to_float(const uint16_t * in, std::ptrdiff_t n, float * out) {
    for (std::ptrdiff_t i = 0; i < n; i++) {
        const uint32_t bits = uint32_t(in[i]) << 16;
        std::memcpy(out + i, &bits, sizeof bits);
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
    switch (type) {
    case CELL_F32:
        std::memcpy(out, in, size_t(n) * sizeof(float));
        return;
    case CELL_F16:
        half_to_float({static_cast<const uint16_t *>(in), out, n});
        return;
    case CELL_BF16:
        bf16_to_float(static_cast<const uint16_t *>(in), n, out);
        return;
    default:
        q8_0_to_float(static_cast<const BlockQ8_0 *>(in), int(n), out);
    }
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
        float_to_half({in, static_cast<uint16_t *>(out), n});
        return;
    case CELL_BF16:
        float_to_bf16(in, n, static_cast<uint16_t *>(out));
        return;
    default:
        float_to_q8_0(in, int(n), static_cast<BlockQ8_0 *>(out));
    }
}

size_t bytes_of(int32_t type, size_t n) {
    return type == CELL_F32 ? 4 * n : type == CELL_Q8_0 ? n / Q8_0_BLOCK * sizeof(BlockQ8_0) : 2 * n;
}

static char * row_of(const CellView & v, int head, int32_t cell) {
    return static_cast<char *>(v.data) + std::ptrdiff_t(cell) * v.cell_bytes + bytes_of(v.type, size_t(head) * v.dim);
}

// Transposed, the cells of a head lie side by side along a dimension: walk them that way, so that loads share cache lines, a few cells at
// a time, so that stores do too. T is an element's bits.
constexpr int TILE = 128;

// Some cells of a head, as rows: from[i] is the number of the cell that goes to row to[i] of out, [][dim]. Where cells come next is `next`, or 0.
template <class T>
static void turn(const CellView & view, const T * head, const int32_t * from, const int32_t * to, int n, int next, T * out) {
    const int dim = view.dim;
    int j = 0;
    for (; j + 4 <= dim; j += 4) { // four dimensions at once: a cell's number is read once, and its elements written as one
        const T *const r0 = head + std::ptrdiff_t(j) * view.n_cells, *const r1 = r0 + view.n_cells, *const r2 = r1 + view.n_cells,
                       *const r3 = r2 + view.n_cells;
        if (next) {
            for (const T * row : {r0, r1, r2, r3}) {
                __builtin_prefetch(row + next);
            }
        }
        for (int i = 0; i < n; i++) {
            const int32_t c = from[i];
            const T four[4] = {r0[c], r1[c], r2[c], r3[c]};
            std::memcpy(out + std::ptrdiff_t(to[i]) * dim + j, four, sizeof four);
        }
    }
    for (; j < dim; j++) {
        const T * row = head + std::ptrdiff_t(j) * view.n_cells;
        for (int i = 0; i < n; i++) {
            out[std::ptrdiff_t(to[i]) * dim + j] = row[from[i]];
        }
    }
}

// Most of the cells there are: as they lie, which takes each cache line once, whatever order they are wanted in.
template <class T>
static void turn_all(const CellView & view, const T * head, const int32_t * cells, int n, T * out) {
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
    for (int i = 0; i < n; i++) { // a cell that is wanted twice has been written once
        if (const int written = row[size_t(cells[i])]; written != i) {
            std::memcpy(out + std::ptrdiff_t(i) * view.dim, out + std::ptrdiff_t(written) * view.dim,
                        size_t(view.dim) * sizeof(T));
        }
    }
}

template <class T>
static void read_transposed(const CellView & view, int h, const int32_t * cells, int n, T * out) {
    const T * const head = static_cast<const T *>(view.data) + std::ptrdiff_t(h) * view.dim * view.n_cells;
    if (n > view.n_cells / 4) {
        turn_all(view, head, cells, n, out);
        return;
    }
    int32_t to[TILE];
    std::iota(to, to + TILE, 0);
    for (int i = 0; i < n; i += TILE) {
        turn(view, head, cells + i, to, std::min(TILE, n - i), 0, out + std::ptrdiff_t(i) * view.dim);
    }
}

void copy_transposed(const CellView & view, int head, const int32_t * cells, int n, void * out) {
    view.type == CELL_F32 ? read_transposed(view, head, cells, n, static_cast<uint32_t *>(out))
                          : read_transposed(view, head, cells, n, static_cast<uint16_t *>(out));
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
        const size_t size = size_t(a.n) * a.view.dim;
        if (a.view.type == CELL_F32) {
            copy_transposed(a.view, a.head, a.cells, a.n, a.out);
            return;
        }
        std::vector<uint16_t> rows(size);
        copy_transposed(a.view, a.head, a.cells, a.n, rows.data());
        to_float(a.view.type, rows.data(), std::ptrdiff_t(size), a.out);
        return;
    }
    // Rows that are on their way while one is read: they lie in no order that the processor could foresee.
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

// An orthonormal Walsh-Hadamard transform of each run of `size` elements: its own inverse.
static void hadamard_transform(float * x, int n, int size) {
    const float norm = 1 / std::sqrt(float(size));
    for (float * run = x; run < x + n; run += size) {
        for (int half = 1; half < size; half *= 2) {
            for (int i = 0; i < size; i += 2 * half) {
                for (int j = i; j < i + half; j++) {
                    const float a = run[j], b = run[j + half];
                    run[j] = a + b;
                    run[j + half] = a - b;
                }
            }
        }
        for (int i = 0; i < size; i++) {
            run[i] *= norm;
        }
    }
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

namespace {

// Cosines and sines of rotations over a number of positions, [n_rot/2] each, kept for the next member: neighbours merge, so most are over a few.
class Rotations {
  public:
    // Cosines, and after them sines.
    const float * over(int32_t delta, const double * freq, int half) {
        if (freq != freq_ || half != half_) {
            freq_ = freq;
            half_ = half;
            kept_.assign(SLOTS, 0);
            table_.resize(size_t(SLOTS) * 2 * half);
        }
        const size_t slot = uint32_t(delta) % SLOTS;
        float *const cosine = table_.data() + slot * 2 * half, *const sine = cosine + half;
        if (kept_[slot] != delta) { // 0 is never asked for
            const double turns = delta * 0.159154943091895336;
#pragma omp simd
            for (int i = 0; i < half; i++) {
                cos_sin_turns(turns * freq[i], cosine[i], sine[i]);
            }
            kept_[slot] = delta;
        }
        return cosine;
    }

  private:
    static constexpr uint32_t SLOTS = 64;
    const double * freq_ = nullptr;
    int half_ = 0;
    std::vector<int32_t> kept_; // the delta in each slot
    std::vector<float> table_;
};

} // namespace

static void add_value(const float * v, float w, int n, float * value) {
#pragma omp simd
    for (int i = 0; i < n; i++) {
        value[i] += w * v[i];
    }
}

// Adds w times a key, rotated by RoPE over delta positions.
static void add_key(const MergeHead & h, const float * k, float w, int32_t delta, float * key, Rotations & rotations) {
    const int half = h.n_rot / 2;
    const int plain = delta == 0 ? 0 : h.n_rot;
#pragma omp simd
    for (int i = plain; i < h.k.dim; i++) {
        key[i] += w * k[i];
    }
    if (plain == 0) {
        return;
    }
    const float *const c = rotations.over(delta, h.freq, half), *const s = c + half;
    if (h.neox) {
#pragma omp simd
        for (int i = 0; i < half; i++) {
            key[i] += w * (k[i] * c[i] - k[i + half] * s[i]);
            key[i + half] += w * (k[i] * s[i] + k[i + half] * c[i]);
        }
    } else {
#pragma omp simd
        for (int i = 0; i < half; i++) {
            key[2 * i] += w * (k[2 * i] * c[i] - k[2 * i + 1] * s[i]);
            key[2 * i + 1] += w * (k[2 * i] * s[i] + k[2 * i + 1] * c[i]);
        }
    }
}

// Members are read so many at a time: into memory that stays in the first caches, and is not new to the process at each call.
constexpr int MEMBERS = 128;

static void merge_head(const MergeHead & h, Rotations & rotations, std::vector<float> & members) {
    const int n_members = h.n_groups ? h.start[h.n_groups] : 0, dim_k = h.k.dim, dim_v = h.v.dim;
    members.resize(std::max(members.size(), size_t(MEMBERS) * (dim_k + dim_v)));
    float *const keys = members.data(), *const values = keys + size_t(MEMBERS) * dim_k;
    float * const out_keys = h.scratch;
    float * const out_values = h.scratch + size_t(h.n_groups) * dim_k;
    std::fill(out_keys, out_values + size_t(h.n_groups) * dim_v, 0.0f);
    int g = 0;
    for (int first = 0; first < n_members; first += MEMBERS) {
        const int count = std::min(MEMBERS, n_members - first);
        gather_cells({h.k, h.head, h.member + first, count, keys});
        gather_cells({h.v, h.head, h.member + first, count, values});
        if (h.hadamard) {
            hadamard_transform(keys, count * dim_k, h.hadamard);
        }
        for (int i = 0; i < count; i++) {
            const int m = first + i;
            while (m >= h.start[g + 1]) {
                g++;
            }
            add_key(h, keys + size_t(i) * dim_k, h.weight[m], h.delta[m], out_keys + size_t(g) * dim_k, rotations);
            add_value(values + size_t(i) * dim_v, h.value_weight[m], dim_v, out_values + size_t(g) * dim_v);
        }
    }
    if (h.hadamard) {
        hadamard_transform(out_keys, h.n_groups * dim_k, h.hadamard);
    }
    for (int b = 0; h.bias && b < h.n_groups; b++) {
        add_value(h.u, h.bias[b], dim_k, out_keys + size_t(b) * dim_k);
    }
    scatter_cells({h.k, h.head, h.dest, h.n_groups, out_keys});
    scatter_cells({h.v, h.head, h.dest, h.n_groups, out_values});
}

void merge_cells(const MergeCellsArgs & a) {
    Rotations rotations;
    std::vector<float> members;
    for (int i = 0; i < a.n_heads; i++) {
        merge_head(a.heads[i], rotations, members);
    }
}

namespace {

// The angles of some positions, kept for the next head: of most models all layers have the same, and all heads of a block do.
class Angles {
  public:
    // Cosines of position i at [i][half], sines behind all of them.
    const float * of(const int32_t * position, int n, const double * freq, int half) {
        if (int(position_.size()) != n || int(freq_.size()) != half || !std::equal(position, position + n, position_.begin()) ||
            !std::equal(freq, freq + half, freq_.begin())) {
            position_.assign(position, position + n);
            freq_.assign(freq, freq + half);
            table_.resize(size_t(n) * 2 * half);
            for (int i = 0; i < n; i++) {
                float *const c = table_.data() + size_t(i) * half, *const s = c + size_t(n) * half;
                const double turns = position[i] * 0.159154943091895336;
#pragma omp simd
                for (int j = 0; j < half; j++) {
                    cos_sin_turns(turns * freq[j], c[j], s[j]);
                }
            }
        }
        return table_.data();
    }

  private:
    std::vector<int32_t> position_;
    std::vector<double> freq_;
    std::vector<float> table_;
};

} // namespace

static float dot(const float * x, const float * y, int n) {
    Vector sum = {};
    int i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        sum += load(x + i) * load(y + i);
    }
    float rest = 0;
    for (; i < n; i++) {
        rest += x[i] * y[i];
    }
    return added_up(sum) + rest;
}

void project_cells(const ProjectCellsArgs & a) {
    thread_local Angles angles;
    const int half = a.n_rot / 2, dim = a.keys.dim;
    const float *const cosine = angles.of(a.position, a.n, a.freq, half), *const sine = cosine + size_t(a.n) * half;
    std::vector<float> rows(size_t(MEMBERS) * std::max(dim, a.values.dim));
    for (int i0 = 0; i0 < a.n; i0 += MEMBERS) {
        const int count = std::min(MEMBERS, a.n - i0);
        gather_cells({a.keys, a.head, a.cells + i0, count, rows.data()});
        if (a.hadamard) {
            hadamard_transform(rows.data(), count * dim, a.hadamard);
        }
        for (int i = 0; i < count; i++) {
            float * const k = rows.data() + std::ptrdiff_t(i) * dim;
            const float *const c = cosine + std::ptrdiff_t(i0 + i) * half, *const s = sine + std::ptrdiff_t(i0 + i) * half;
            const int stride = a.neox ? 1 : 2, apart = a.neox ? half : 1;
#pragma omp simd
            for (int j = 0; j < half; j++) {
                const float x = k[stride * j], y = k[stride * j + apart];
                k[stride * j] = x * c[j] + y * s[j];
                k[stride * j + apart] = y * c[j] - x * s[j];
            }
            a.product[i0 + i] = dot(k, a.weight, dim);
        }
        gather_cells({a.values, a.head, a.cells + i0, count, rows.data()});
        for (int i = 0; i < count; i++) {
            const float * const v = rows.data() + std::ptrdiff_t(i) * a.values.dim;
            a.length[i0 + i] = std::sqrt(dot(v, v, a.values.dim));
        }
    }
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
