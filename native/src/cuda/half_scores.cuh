// Both passes of scores.cu on tensor cores, for keys in half precision. Queries are rounded to it.
//
// A product of a warp is one of 16 rows and 8 cells. Its lanes load 16 bytes each straight from the cache, 8 dimensions
// of a row or a cell: four lanes have a step of 32 dimensions. They do not meet in the order of memory, but it is the
// same order on both sides, and a sum does not mind. So nothing goes through shared memory, and the warps of a block
// need not wait for each other. One side stays in registers. In the first pass that is the queries, whose sums then
// stay in registers as well, in the second the keys.
#pragma once

#include "scores.cuh"
#include "tensor_cores.cuh"

#include <type_traits>

namespace kvmerge {
namespace cuda {

constexpr int HALF_THREADS = 128, HALF_WARPS = HALF_THREADS / WARP;
constexpr int EIGHT = 8;        // dimensions that a lane loads at once
constexpr int STEP = 4 * EIGHT; // dimensions
constexpr int PRODUCT_ROWS = 16, PRODUCT_CELLS = 8;
constexpr int BITS = 32; // cells of a word of Scores::visible
constexpr float LOG2_E = 1.442695041f, LN_2 = .6931471806f;

__host__ __device__ constexpr int words_of(int n_cells) {
    return (n_cells + BITS - 1) / BITS;
}

// Products of rows that a warp keeps in registers, and products of cells: fewer of them where heads are large.
__host__ __device__ constexpr int row_products(int steps) {
    return steps <= 4 ? 2 : 1;
}
__host__ __device__ constexpr int cell_products(int steps) {
    return steps <= 4 ? 4 : steps <= 8 ? 2 : 1;
}

// Steps of a head of so many dimensions: there are kernels for these.
__host__ __device__ constexpr int steps_of(int dim) {
    return dim <= 64 ? 2 : dim <= 128 ? 4 : dim <= 256 ? 8 : 16;
}

__device__ inline uint32_t two_halves(float low, float high) {
    return __half_as_ushort(__float2half_rn(low)) | uint32_t(__half_as_ushort(__float2half_rn(high))) << 16;
}

__host__ __device__ constexpr int row_tiles_of(int rows) {
    return (rows + PRODUCT_ROWS - 1) / PRODUCT_ROWS;
}

// Queries in half precision, and masks in bits. Thread blocks: (any number, layers).
__global__ void __launch_bounds__(HALF_THREADS) prepare_half(Layers layers, int steps) {
    const Scores & s = layers.at[blockIdx.y];
    const int all = gridDim.x * blockDim.x, me = blockIdx.x * blockDim.x + threadIdx.x, dim = s.a.keys.dim,
              tiles = row_tiles_of(s.rows());
    const std::ptrdiff_t n = std::ptrdiff_t(s.a.n_kv_heads) * tiles * steps * 2 * WARP;
    for (std::ptrdiff_t i = me; i < n; i += all) {
        const int lane = int(i % WARP), product = int(i / WARP % 2), step = int(i / WARP / 2 % steps),
                  tile = int(i / WARP / 2 / steps), kv_head = tile / tiles,
                  d = step * STEP + lane % 4 * EIGHT + product * EIGHT / 2;
        uint32_t two[2][2] = {}; // [row][dimensions]
        for (int k = 0; k < 2; k++) {
            const int row = tile % tiles * PRODUCT_ROWS + k * PRODUCT_ROWS / 2 + lane / 4;
            if (row < s.rows() && d < dim) { // dimensions are a multiple of eight
                const float * const q = s.query(kv_head, row) + d;
                two[k][0] = two_halves(q[0], q[1]), two[k][1] = two_halves(q[2], q[3]);
            }
        }
        s.queries[i] = {two[0][0], two[1][0], two[0][1], two[1][1]};
    }
    const int words = words_of(s.a.n_cells);
    const std::ptrdiff_t n_words = std::ptrdiff_t(s.a.n_rows) * words;
    for (std::ptrdiff_t i = me / WARP; i < n_words; i += all / WARP) {
        const unsigned seen =
            __ballot_sync(ALL_LANES, s.shows(int(i / words), int(i % words) * BITS + int(threadIdx.x % WARP)));
        if (threadIdx.x % WARP == 0) {
            s.visible[i] = seen;
        }
    }
}

// What a lane reads: row or cell `group` of a product, dimensions 8 part .. of each step. It gets the scores of rows
// group and group + 8 with cells 2 part and 2 part + 1.
struct HalfLane {
    int group = threadIdx.x % WARP / 4, part = threadIdx.x % 4;
};

template <int STEPS>
struct HalfKeys {
    const char * at; // this lane's first element of cell 0
    std::ptrdiff_t cell_bytes;
    int last, dims; // the last cell; dimensions from `at` on
    __device__ HalfKeys(const Scores & s, int kv_head, int part)
        : at(address_of(s.a.keys, s.a.first_kv_head + kv_head, 0, EIGHT * part)), cell_bytes(s.a.keys.cell_bytes),
          last(s.a.n_cells - 1), dims(s.a.keys.dim - EIGHT * part) {}
    // Behind the last cell, that one again.
    __device__ void load(int cell, uint4 (&to)[STEPS]) const {
        const char * const from = at + min(cell, last) * cell_bytes;
#pragma unroll
        for (int j = 0; j < STEPS; j++) {
            to[j] = STEP * j < dims ? *reinterpret_cast<const uint4 *>(from + 2 * STEP * j) : uint4{0, 0, 0, 0};
        }
    }
    // Has a product's cells come into the GPU's second cache.
    __device__ void prefetch(int cell) const {
        const char * const from = at + min(cell, last) * cell_bytes;
#pragma unroll
        for (int j = 0; j < STEPS; j++) {
            if (STEP * j < dims) {
                prefetch_l2(from + 2 * STEP * j);
            }
        }
    }
};

// What this lane gives to the products of 16 rows: of step j, at 2 j WARP and (2 j + 1) WARP. Behind the last rows,
// those again.
template <int STEPS>
__device__ inline const uint4 * half_queries(const Scores & s, int kv_head, int r0) {
    const int tiles = row_tiles_of(s.rows()), tile = min(r0 / PRODUCT_ROWS, tiles - 1);
    return s.queries + (std::ptrdiff_t(kv_head) * tiles + tile) * (STEPS * 2 * WARP) + threadIdx.x % WARP;
}

__device__ inline void multiply_step(float (&sum)[4], const uint4 & first, const uint4 & second, const uint4 & cell) {
    mma(sum, first, cell.x, cell.y);
    mma(sum, second, cell.z, cell.w);
}

// Products become scores in units of log 2. tanh x = 1 - 2 / (e^2x + 1) is exact enough: scores are compared, not
// divided.
template <int N>
__device__ inline void to_scores(const Scores & s, float (&x)[N][4]) {
    if (s.a.cap == 0) {
        const float factor = s.a.scale * LOG2_E;
#pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            x[i / 4][i % 4] *= factor;
        }
    } else {
        const float most = s.a.cap * LOG2_E, factor = 2 * s.a.scale * LOG2_E / s.a.cap;
#pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            x[i / 4][i % 4] = most - __fdividef(2 * most, ex2(factor * x[i / 4][i % 4]) + 1);
        }
    }
}

constexpr float LEAST = -1e30f; // no score is as low; it can be subtracted, as minus infinity cannot
constexpr float ROOM = 20; // a maximum is left as it is until a score is 2^20 times it: seldom after the first cells

// Thread blocks: (groups of rows, parts of the cells, layers and KV heads). `across` warps of a block, 1, 2 or 4, look
// at other rows and the same cells, which one of them brings into the cache for all. The others share a part's cells.
// part: [layer and KV head][row][parts][3], with as many parts as blocks and warps share the cells.
template <int STEPS>
__global__ void __launch_bounds__(HALF_THREADS, STEPS <= 2   ? 4
                                                : STEPS <= 4 ? 3
                                                             : 2)
    half_row_parts(Layers layers, int n_kv_heads, int across, int cells_a_part, float * part) {
    constexpr int N = row_products(STEPS), AHEAD = STEPS <= 8 ? 2 : 1; // cells on the way, in products
    const Scores & s = layers.at[blockIdx.z / n_kv_heads];
    const HalfLane lane;
    const int kv_head = blockIdx.z % n_kv_heads, warp = threadIdx.x / WARP, sharing = HALF_WARPS / across,
              r0 = (blockIdx.x * across + warp % across) * N * PRODUCT_ROWS, stride = sharing * BITS,
              first = blockIdx.y * cells_a_part + warp / across * BITS,
              last = min(s.a.n_cells, int(blockIdx.y + 1) * cells_a_part), words = words_of(s.a.n_cells);
    if (r0 >= s.rows()) {
        return;
    }
    uint4 q[N][2][STEPS];
    const uint32_t * visible[N][2];
    float m[N][2], l[N][2] = {}, t[N][2] = {}; // as Online's, of exponents of 2
#pragma unroll
    for (int i = 0; i < 2 * N; i++) {
        const int r = r0 + PRODUCT_ROWS / 2 * i + lane.group;
        const uint4 * const queries = half_queries<STEPS>(s, kv_head, r0 + i / 2 * PRODUCT_ROWS);
#pragma unroll
        for (int j = 0; j < STEPS; j++) {
            q[i / 2][i % 2][j] = queries[(2 * j + i % 2) * WARP];
        }
        visible[i / 2][i % 2] = s.visible + std::ptrdiff_t(min(r, s.rows() - 1) % s.a.n_rows) * words;
        m[i / 2][i % 2] = LEAST;
    }
    const HalfKeys<STEPS> keys(s, kv_head, lane.part);
    uint4 k[AHEAD][STEPS];
#pragma unroll
    for (int n = 0; n < AHEAD; n++) {
        keys.load(first + n * PRODUCT_CELLS + lane.group, k[n]);
    }
    for (int c0 = first; c0 < last; c0 += stride) {
        // Warps that share cells have few of them on the way: more are ordered, of each warp other ones.
        for (int n = warp % across; across > 1 && n < BITS / PRODUCT_CELLS; n += across) {
            keys.prefetch(c0 + 2 * stride + n * PRODUCT_CELLS + lane.group);
        }
        uint32_t seen[N][2], by_all = ~0u;
#pragma unroll
        for (int i = 0; i < 2 * N; i++) {
            by_all &= seen[i / 2][i % 2] = visible[i / 2][i % 2][c0 / BITS];
            seen[i / 2][i % 2] >>= 2 * lane.part;
        }
        const bool some_hidden = __ballot_sync(ALL_LANES, by_all != ~0u); // branches are of whole warps, as mma asks
#pragma unroll
        for (int n = 0; n < BITS / PRODUCT_CELLS; n++) {
            float x[N][4] = {};
#pragma unroll
            for (int j = 0; j < STEPS; j++) {
#pragma unroll
                for (int i = 0; i < N; i++) {
                    multiply_step(x[i], q[i][0][j], q[i][1][j], k[n % AHEAD][j]);
                }
            }
            const int next = n + AHEAD;
            keys.load(c0 + next * PRODUCT_CELLS + (next < BITS / PRODUCT_CELLS ? 0 : stride - BITS) + lane.group,
                      k[n % AHEAD]);
            to_scores(s, x);
            if (some_hidden) {
#pragma unroll
                for (int i = 0; i < 4 * N; i++) {
                    if (!(seen[i / 4][i % 4 / 2] >> (n * PRODUCT_CELLS + i % 2) & 1)) {
                        x[i / 4][i % 4] = 2 * LEAST;
                    }
                }
            }
            bool higher = false;
#pragma unroll
            for (int i = 0; i < 4 * N; i++) {
                higher |= x[i / 4][i % 4] - m[i / 4][i % 4 / 2] > ROOM;
            }
            if (__ballot_sync(ALL_LANES, higher)) {
#pragma unroll
                for (int i = 0; i < 2 * N; i++) {
                    const int a = i / 2, b = i % 2;
                    const float top = fmaxf(m[a][b], fmaxf(x[a][2 * b], x[a][2 * b + 1])), d = m[a][b] - top,
                                f = ex2(d);
                    t[a][b] = f * (t[a][b] + d * l[a][b]);
                    l[a][b] *= f;
                    m[a][b] = top;
                }
            }
#pragma unroll
            for (int i = 0; i < 4 * N; i++) {
                const float y = x[i / 4][i % 4] - m[i / 4][i % 4 / 2], e = ex2(y);
                l[i / 4][i % 4 / 2] += e;
                t[i / 4][i % 4 / 2] += e * y;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < 2 * N; i++) {
        Online sum = {m[i / 2][i % 2] * LN_2, l[i / 2][i % 2], t[i / 2][i % 2] * LN_2};
        sum.merge_lanes(1);
        sum.merge_lanes(2);
        const int r = r0 + PRODUCT_ROWS / 2 * i + lane.group;
        if (lane.part == 0 && r < s.rows()) {
            float * const out = part + ((std::ptrdiff_t(blockIdx.z) * s.rows() + r) * (gridDim.y * sharing) +
                                        blockIdx.y * sharing + warp / across) *
                                           3;
            out[0] = sum.m, out[1] = sum.l, out[2] = sum.t;
        }
    }
}

// Thread blocks: (groups of cells, parts of the rows, layers and KV heads). part: [layer and KV head][parts][cells].
template <int STEPS>
__global__ void __launch_bounds__(HALF_THREADS, STEPS <= 2   ? 4
                                                : STEPS <= 8 ? 3
                                                             : 2)
    half_column_parts(Layers layers, int n_kv_heads, int rows_a_part, float * part) {
    constexpr int N = cell_products(STEPS), CELLS = N * PRODUCT_CELLS;
    const Scores & s = layers.at[blockIdx.z / n_kv_heads];
    const HalfLane lane;
    const int kv_head = blockIdx.z % n_kv_heads, first = blockIdx.y * rows_a_part,
              last = min(s.rows(), first + rows_a_part), words = words_of(s.a.n_cells),
              c0 = (blockIdx.x * HALF_WARPS + threadIdx.x / WARP) * CELLS;
    if (c0 >= s.a.n_cells) {
        return;
    }
    const HalfKeys<STEPS> keys(s, kv_head, lane.part);
    uint4 k[N][STEPS];
#pragma unroll
    for (int n = 0; n < N; n++) {
        keys.load(c0 + n * PRODUCT_CELLS + lane.group, k[n]);
    }
    const float power = float(s.a.half_powers) / 2;
    float column[N][2] = {};
    for (int r0 = first; r0 < last; r0 += PRODUCT_ROWS) {
        float lse[2]; // in units of log 2, times the power
        uint32_t seen[2];
        const uint4 * const queries = half_queries<STEPS>(s, kv_head, r0);
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int r = min(r0 + PRODUCT_ROWS / 2 * i + lane.group, last - 1);
            lse[i] = s.lse[kv_head * s.rows() + r] * (LOG2_E * power);
            seen[i] = s.visible[std::ptrdiff_t(r % s.a.n_rows) * words + c0 / BITS] >> (c0 % BITS + 2 * lane.part);
            seen[i] = r0 + PRODUCT_ROWS / 2 * i + lane.group < last ? seen[i] : 0;
        }
        float x[N][4] = {};
#pragma unroll
        for (int j = 0; j < STEPS; j++) {
            const uint4 first_half = queries[2 * j * WARP], second_half = queries[(2 * j + 1) * WARP];
#pragma unroll
            for (int n = 0; n < N; n++) {
                multiply_step(x[n], first_half, second_half, k[n][j]);
            }
        }
        to_scores(s, x);
#pragma unroll
        for (int i = 0; i < 4 * N; i++) {
            const float p = ex2(power * x[i / 4][i % 4] - lse[i % 4 / 2]);
            column[i / 4][i % 2] += seen[i % 4 / 2] >> (i / 4 * PRODUCT_CELLS + i % 2) & 1 ? p : 0.0f;
        }
    }
#pragma unroll
    for (int i = 0; i < 2 * N; i++) {
        float sum = column[i / 2][i % 2];
        for (int o = 4; o < WARP; o *= 2) { // the lanes that have other rows of these cells
            sum += __shfl_xor_sync(ALL_LANES, sum, o);
        }
        const int c = c0 + i / 2 * PRODUCT_CELLS + 2 * lane.part + i % 2;
        if (lane.group == 0 && c < s.a.n_cells) {
            part[(std::ptrdiff_t(blockIdx.z) * gridDim.y + blockIdx.y) * s.a.n_cells + c] = sum;
        }
    }
}

// ---- the host's side ------------------------------------------------------------------------------------------------

constexpr int MOST_HALF_DIMS = 512;

inline bool suits_tensor_cores(const CellView & keys) {
    return keys.type == CELL_F16 && !keys.transposed && keys.dim % EIGHT == 0 && keys.dim <= MOST_HALF_DIMS &&
           reinterpret_cast<size_t>(keys.data) % sizeof(uint4) == 0 && keys.cell_bytes % sizeof(uint4) == 0;
}

// Calls body with the number of steps, as a constant.
template <class Body>
void in_steps(int dim, Body && body) {
    switch (steps_of(dim)) {
    case 2:
        return body(std::integral_constant<int, 2>());
    case 4:
        return body(std::integral_constant<int, 4>());
    case 8:
        return body(std::integral_constant<int, 8>());
    default:
        return body(std::integral_constant<int, 16>());
    }
}

// How the work is cut into thread blocks.
struct HalfCut {
    int across, row_groups, row_parts, cells_a_part, cell_groups, column_parts, rows_a_part;
    HalfCut(int heads, int rows, int n_cells, int dim) {
        const int steps = steps_of(dim), of_warp = row_products(steps) * PRODUCT_ROWS;
        across = rows <= of_warp ? 1 : rows <= 2 * of_warp ? 2 : HALF_WARPS;
        row_groups = ceil_div(rows, across * of_warp);
        const int tile = BITS * HALF_WARPS / across, tiles = ceil_div(n_cells, tile);
        row_parts = parts_of(tiles, row_groups * heads);
        cells_a_part = ceil_div(tiles, row_parts) * tile;
        cell_groups = ceil_div(n_cells, HALF_WARPS * cell_products(steps) * PRODUCT_CELLS);
        const int row_tiles = row_tiles_of(rows);
        column_parts = parts_of(row_tiles, cell_groups * heads);
        rows_a_part = ceil_div(row_tiles, column_parts) * PRODUCT_ROWS;
    }
    int parts_of_a_row() const { return row_parts * (HALF_WARPS / across); }
};

template <int STEPS>
void launch_half_rows(cudaStream_t stream, const Layers & layers, int n_layers, const HalfCut & cut, float * part) {
    const ScoreStatsArgs & a = layers.at[0].a;
    const size_t tiles = size_t(a.n_kv_heads) * size_t(row_tiles_of(a.heads_per_kv * a.n_rows)),
                 work = std::max(tiles * STEPS * 2 * WARP, size_t(a.n_rows) * size_t(words_of(a.n_cells)) * WARP);
    KVMERGE_LAUNCH(prepare_half, dim3(int(std::min<size_t>(ceil_div(work, HALF_THREADS), 256)), n_layers), HALF_THREADS,
                   0, stream, layers, STEPS);
    KVMERGE_LAUNCH(half_row_parts<STEPS>, dim3(cut.row_groups, cut.row_parts, n_layers * a.n_kv_heads), HALF_THREADS, 0,
                   stream, layers, a.n_kv_heads, cut.across, cut.cells_a_part, part);
}

template <int STEPS>
void launch_half_columns(cudaStream_t stream, const Layers & layers, int n_layers, const HalfCut & cut, float * part) {
    const int n_kv_heads = layers.at[0].a.n_kv_heads;
    KVMERGE_LAUNCH(half_column_parts<STEPS>, dim3(cut.cell_groups, cut.column_parts, n_layers * n_kv_heads),
                   HALF_THREADS, 0, stream, layers, n_kv_heads, cut.rows_a_part, part);
}

} // namespace cuda
} // namespace kvmerge
