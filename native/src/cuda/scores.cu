// What attention did, on the GPU, from the queries and the cached keys of several layers at once.
//
// Scores are made tile by tile and never go to memory. The first pass over the keys finds each row's log-sum-exp and
// entropy, the second makes the scores again and adds probabilities up by column. Both are split so that a few rows, as
// of a generation, occupy the whole GPU too; what the parts found is then put together in a fixed order.
#include "common.cuh"

#include <algorithm>
#include <mma.h>
#include <vector>

namespace kvmerge {
namespace cuda {

constexpr int THREADS = 256, CELLS = 64, ROWS = 32; // of a tile: a warp makes 16 by 16 of its scores on tensor cores
constexpr int CELLS_A_THREAD = 4, ROWS_A_THREAD = 2;
constexpr int DIMS = 16;            // that go through shared memory at a time, in single precision
constexpr int HALF_DIMS = 64;       // and in half precision
constexpr int PAD = 8;              // elements behind a row in shared memory, against conflicts of its banks
constexpr int ENOUGH_BLOCKS = 1024; // of threads, to occupy a GPU

// A KV head's rows are those of its query heads, one head after another.
struct Scores {
    ScoreStatsArgs a;
    float * lse; // [KV heads][rows]
    __device__ int rows() const { return a.heads_per_kv * a.n_rows; }
    __device__ const float * query(int kv_head, int r) const {
        return a.q + std::ptrdiff_t(kv_head * a.heads_per_kv + r / a.n_rows) * a.head_stride +
               std::ptrdiff_t(r % a.n_rows) * a.row_stride;
    }
    __device__ float score(float dot) const {
        return a.cap != 0 ? a.cap * tanhf(a.scale * dot / a.cap) : a.scale * dot;
    }
    __device__ bool shows(int r, int c) const {
        return r < rows() && c < a.n_cells && !(a.mask && a.mask[(r % a.n_rows) * a.mask_stride + c] == HIDDEN);
    }
};

constexpr int MOST_LAYERS = 16; // of a launch: parameters of a kernel have 4 KB
struct Layers {
    Scores at[MOST_LAYERS];
};
static_assert(sizeof(Layers) + 64 <= 4096, "the parameters of a kernel");

// A thread's part of a tile's products: cells tc + 16 i, rows tr + 16 j.
using Products = float[CELLS_A_THREAD][ROWS_A_THREAD];

// In single precision, for any type of keys.
__device__ inline void multiply(const Scores & s, int kv_head, int r0, int c0, float * shared, Products & product) {
    float(*const k_tile)[CELLS + 1] = reinterpret_cast<float(*)[CELLS + 1]>(shared);
    float(*const q_tile)[ROWS + 1] = reinterpret_cast<float(*)[ROWS + 1]>(shared + DIMS * (CELLS + 1));
    const int tc = threadIdx.x % 16, tr = threadIdx.x / 16, dim = s.a.keys.dim;
    for (int i = 0; i < CELLS_A_THREAD; i++) {
        for (int j = 0; j < ROWS_A_THREAD; j++) {
            product[i][j] = 0;
        }
    }
    for (int d0 = 0; d0 < dim; d0 += DIMS) {
        for (int i = threadIdx.x; i < DIMS * CELLS; i += THREADS) {
            const int d = i % DIMS, c = i / DIMS;
            k_tile[d][c] = d0 + d < dim && c0 + c < s.a.n_cells
                               ? load_cell(s.a.keys, s.a.first_kv_head + kv_head, c0 + c, d0 + d)
                               : 0.0f;
        }
        for (int i = threadIdx.x; i < DIMS * ROWS; i += THREADS) {
            const int d = i % DIMS, r = i / DIMS;
            q_tile[d][r] = d0 + d < dim && r0 + r < s.rows() ? s.query(kv_head, r0 + r)[d0 + d] : 0.0f;
        }
        __syncthreads();
        for (int d = 0; d < DIMS; d++) {
            for (int i = 0; i < CELLS_A_THREAD; i++) {
                for (int j = 0; j < ROWS_A_THREAD; j++) {
                    product[i][j] += k_tile[d][tc + 16 * i] * q_tile[d][tr + 16 * j];
                }
            }
        }
        __syncthreads();
    }
}

// On tensor cores, for keys in half precision whose dimensions are a multiple of 16. Queries are rounded to it.
__device__ inline void multiply_half(const Scores & s, int kv_head, int r0, int c0, float * shared,
                                     Products & product) {
    using namespace nvcuda;
    constexpr int STRIDE = HALF_DIMS + PAD, SCORE_STRIDE = CELLS + PAD;
    __half * const k_tile = reinterpret_cast<__half *>(shared); // [CELLS][STRIDE]
    __half * const q_tile = k_tile + CELLS * STRIDE;            // [ROWS][STRIDE]
    const int tc = threadIdx.x % 16, tr = threadIdx.x / 16, dim = s.a.keys.dim, warp = threadIdx.x / WARP;
    const int warp_c = warp % (CELLS / 16) * 16, warp_r = warp / (CELLS / 16) * 16;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    for (int d0 = 0; d0 < dim; d0 += HALF_DIMS) {
        const int dims = min(HALF_DIMS, dim - d0);
        for (int i = threadIdx.x; i < dims / 2 * CELLS; i += THREADS) { // two elements at once
            const int d = i % (dims / 2) * 2, c = i / (dims / 2);
            const uint32_t both = c0 + c < s.a.n_cells ? *reinterpret_cast<const uint32_t *>(address_of(
                                                             s.a.keys, s.a.first_kv_head + kv_head, c0 + c, d0 + d))
                                                       : 0;
            *reinterpret_cast<uint32_t *>(k_tile + c * STRIDE + d) = both;
        }
        for (int i = threadIdx.x; i < dims * ROWS; i += THREADS) {
            const int d = i % dims, r = i / dims;
            q_tile[r * STRIDE + d] = __float2half_rn(r0 + r < s.rows() ? s.query(kv_head, r0 + r)[d0 + d] : 0.0f);
        }
        __syncthreads();
        for (int d = 0; d < dims; d += 16) {
            wmma::fragment<wmma::matrix_a, 16, 16, 16, __half, wmma::row_major> rows;
            wmma::fragment<wmma::matrix_b, 16, 16, 16, __half, wmma::col_major> cells;
            wmma::load_matrix_sync(rows, q_tile + warp_r * STRIDE + d, STRIDE);
            wmma::load_matrix_sync(cells, k_tile + warp_c * STRIDE + d, STRIDE);
            wmma::mma_sync(sum, rows, cells, sum);
        }
        __syncthreads();
    }
    wmma::store_matrix_sync(shared + warp_r * SCORE_STRIDE + warp_c, sum, SCORE_STRIDE, wmma::mem_row_major);
    __syncthreads();
    for (int i = 0; i < CELLS_A_THREAD; i++) {
        for (int j = 0; j < ROWS_A_THREAD; j++) {
            product[i][j] = shared[(tr + 16 * j) * SCORE_STRIDE + tc + 16 * i];
        }
    }
    __syncthreads();
}

// Of either way, in floats.
constexpr int SHARED = (CELLS + ROWS) * (HALF_DIMS + PAD) / 2;
static_assert(SHARED >= DIMS * (CELLS + ROWS + 2) && SHARED >= ROWS * (CELLS + PAD), "a tile's shared memory");

template <bool HALF>
__device__ inline void multiply(const Scores & s, int kv_head, int r0, int c0, float * shared, Products & product) {
    if (HALF) {
        multiply_half(s, kv_head, r0, c0, shared, product);
    } else {
        multiply(s, kv_head, r0, c0, shared, product);
    }
}

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
};

// Thread blocks: (tiles of rows, parts of the cells, layers and KV heads). part: [layer and KV head][row][parts][3].
template <bool HALF>
__global__ void __launch_bounds__(THREADS) row_parts(Layers layers, int n_kv_heads, int tiles_a_part, float * part) {
    alignas(32) __shared__ float shared[SHARED];
    const Scores & s = layers.at[blockIdx.z / n_kv_heads];
    const int kv_head = blockIdx.z % n_kv_heads, r0 = blockIdx.x * ROWS, tc = threadIdx.x % 16, tr = threadIdx.x / 16;
    const int first = blockIdx.y * tiles_a_part * CELLS, last = min(s.a.n_cells, first + tiles_a_part * CELLS);
    Online sum[ROWS_A_THREAD];
    for (int c0 = first; c0 < last; c0 += CELLS) {
        Products product;
        multiply<HALF>(s, kv_head, r0, c0, shared, product);
        for (int i = 0; i < CELLS_A_THREAD; i++) {
            for (int j = 0; j < ROWS_A_THREAD; j++) {
                if (s.shows(r0 + tr + 16 * j, c0 + tc + 16 * i)) {
                    sum[j].add(s.score(product[i][j]));
                }
            }
        }
    }
    for (int j = 0; j < ROWS_A_THREAD; j++) { // the 16 threads of a row are half a warp
        for (int o = 8; o > 0; o /= 2) {
            const float m2 = __shfl_xor_sync(ALL_LANES, sum[j].m, o), l2 = __shfl_xor_sync(ALL_LANES, sum[j].l, o),
                        t2 = __shfl_xor_sync(ALL_LANES, sum[j].t, o);
            sum[j].merge(m2, l2, t2);
        }
        const int r = r0 + tr + 16 * j;
        if (tc == 0 && r < s.rows()) {
            float * const out = part + ((std::ptrdiff_t(blockIdx.z) * s.rows() + r) * gridDim.y + blockIdx.y) * 3;
            out[0] = sum[j].m, out[1] = sum[j].l, out[2] = sum[j].t;
        }
    }
}

// A thread puts the parts of a row together.
__global__ void whole_rows(Layers layers, int n_kv_heads, int parts, const float * part) {
    const Scores & s = layers.at[blockIdx.y / n_kv_heads];
    const int kv_head = blockIdx.y % n_kv_heads, r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= s.rows()) {
        return;
    }
    Online sum;
    for (int p = 0; p < parts; p++) {
        const float * const of = part + ((std::ptrdiff_t(blockIdx.y) * s.rows() + r) * parts + p) * 3;
        sum.merge(of[0], of[1], of[2]);
    }
    // For a row that sees nothing the log-sum-exp is infinity, which makes every probability 0.
    s.lse[kv_head * s.rows() + r] = sum.l == 0.0f ? INFINITY : sum.m == -INFINITY ? sum.l : sum.m + logf(sum.l);
    if (s.a.entropy) {
        const int h = kv_head * s.a.heads_per_kv + r / s.a.n_rows;
        const float nats = sum.l == 0.0f ? 0.0f : logf(sum.l) - sum.t / sum.l;
        s.a.entropy[h * s.a.entropy_stride + r % s.a.n_rows] =
            clamped_entropy(nats, s.a.inv_log_visible[r % s.a.n_rows]);
    }
}

// Thread blocks: (tiles of cells, parts of the rows, layers and KV heads). part: [layer and KV head][parts][cells].
template <bool HALF>
__global__ void __launch_bounds__(THREADS) column_parts(Layers layers, int n_kv_heads, int tiles_a_part, float * part) {
    alignas(32) __shared__ float shared[SHARED];
    const Scores & s = layers.at[blockIdx.z / n_kv_heads];
    const int kv_head = blockIdx.z % n_kv_heads, c0 = blockIdx.x * CELLS, tc = threadIdx.x % 16, tr = threadIdx.x / 16;
    const int first = blockIdx.y * tiles_a_part * ROWS, last = min(s.rows(), first + tiles_a_part * ROWS);
    float column[CELLS_A_THREAD] = {};
    for (int r0 = first; r0 < last; r0 += ROWS) {
        Products product;
        multiply<HALF>(s, kv_head, r0, c0, shared, product);
        for (int j = 0; j < ROWS_A_THREAD; j++) {
            const int r = r0 + tr + 16 * j;
            const float lse = r < s.rows() ? s.lse[kv_head * s.rows() + r] : 0.0f;
            for (int i = 0; i < CELLS_A_THREAD; i++) {
                if (s.shows(r, c0 + tc + 16 * i)) {
                    column[i] += sharpened(expf(s.score(product[i][j]) - lse), s.a.half_powers);
                }
            }
        }
    }
    for (int i = 0; i < CELLS_A_THREAD; i++) {
        shared[tr * CELLS + tc + 16 * i] = column[i];
    }
    __syncthreads();
    if (int(threadIdx.x) < CELLS && c0 + int(threadIdx.x) < s.a.n_cells) {
        float sum = 0;
        for (int t = 0; t < 16; t++) {
            sum += shared[t * CELLS + threadIdx.x];
        }
        part[(std::ptrdiff_t(blockIdx.z) * gridDim.y + blockIdx.y) * s.a.n_cells + c0 + threadIdx.x] = sum;
    }
}

__global__ void whole_columns(Layers layers, int n_kv_heads, int parts, const float * part) {
    const Scores & s = layers.at[blockIdx.y / n_kv_heads];
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c < s.a.n_cells && s.a.mass) {
        float sum = 0;
        for (int p = 0; p < parts; p++) {
            sum += part[(std::ptrdiff_t(blockIdx.y) * parts + p) * s.a.n_cells + c];
        }
        s.a.mass[blockIdx.y % n_kv_heads * s.a.mass_stride + c] += s.a.row_weight * sum;
    }
}

// In how many parts to cut `tiles`, which `others` thread blocks each go through: enough for the GPU, and no more, so
// that what the parts find needs little memory however long the context.
static int parts_of(int tiles, int others) {
    const int wanted = std::min(tiles, ceil_div(ENOUGH_BLOCKS, others)), each = ceil_div(tiles, wanted);
    return ceil_div(tiles, each);
}

// How many layers go into one launch: of long contexts few, so that their columns' memory stays small.
static int layers_of_launch(int n_kv_heads, int n_cells) {
    constexpr size_t MOST_COLUMNS = size_t(8) << 20; // elements
    return int(std::clamp<size_t>(MOST_COLUMNS / (size_t(n_kv_heads) * size_t(n_cells)), 1, MOST_LAYERS));
}

// Most that layers_at_once() takes, of up to as many rows and cells. With fewer of them there are more parts, but for
// no more than ENOUGH_BLOCKS thread blocks; and with fewer cells more layers.
size_t scratch_of_scores(int n_layers, int n_kv_heads, int heads_per_kv, int n_rows, int n_cells) {
    const size_t layers = size_t(std::min(n_layers, MOST_LAYERS)), heads = layers * size_t(n_kv_heads),
                 rows = heads * (size_t(heads_per_kv) * size_t(n_rows) + ROWS),
                 a_layer = size_t(n_kv_heads) * (size_t(n_cells) + CELLS),
                 columns = std::min(layers * a_layer, size_t(layers_of_launch(n_kv_heads, n_cells) + 1) * a_layer);
    return scratch_for<float>(rows) + scratch_for<float>(3 * (rows + size_t(ENOUGH_BLOCKS) * ROWS)) +
           scratch_for<float>(columns + size_t(ENOUGH_BLOCKS) * CELLS);
}

// Layers of one shape, on one GPU.
static void layers_at_once(const ScoreStatsArgs * args, int n) {
    Launch launch(args->q);
    const ScoreStatsArgs & a = args[0];
    const int heads = n * a.n_kv_heads, rows = a.heads_per_kv * a.n_rows, row_tiles = ceil_div(rows, ROWS),
              cell_tiles = ceil_div(a.n_cells, CELLS);
    const int row_parts_n = parts_of(cell_tiles, row_tiles * heads),
              column_parts_n = parts_of(row_tiles, cell_tiles * heads);
    float * const lse = launch.scratch<float>(size_t(heads) * rows);
    float * const of_rows = launch.scratch<float>(size_t(heads) * rows * row_parts_n * 3);
    float * const of_columns = launch.scratch<float>(size_t(heads) * column_parts_n * a.n_cells);
    if (!launch.fine()) {
        return;
    }
    Layers layers = {};
    bool mass = false, half = a.keys.type == CELL_F16 && !a.keys.transposed && a.keys.dim % 16 == 0;
    for (int i = 0; i < n; i++) {
        layers.at[i] = {args[i], lse + size_t(i) * a.n_kv_heads * rows};
        mass |= args[i].mass != nullptr;
        half &= reinterpret_cast<size_t>(args[i].keys.data) % 4 == 0 && args[i].keys.cell_bytes % 4 == 0;
    }
    const int in_rows = ceil_div(cell_tiles, row_parts_n), in_columns = ceil_div(row_tiles, column_parts_n);
    const dim3 row_grid(row_tiles, row_parts_n, heads), column_grid(cell_tiles, column_parts_n, heads);
    if (half) {
        KVMERGE_LAUNCH(row_parts<true>, row_grid, THREADS, 0, launch.stream(), layers, a.n_kv_heads, in_rows, of_rows);
    } else {
        KVMERGE_LAUNCH(row_parts<false>, row_grid, THREADS, 0, launch.stream(), layers, a.n_kv_heads, in_rows, of_rows);
    }
    KVMERGE_LAUNCH(whole_rows, dim3(ceil_div(rows, 128), heads), 128, 0, launch.stream(), layers, a.n_kv_heads,
                   row_parts_n, of_rows);
    if (!mass) {
        return;
    }
    if (half) {
        KVMERGE_LAUNCH(column_parts<true>, column_grid, THREADS, 0, launch.stream(), layers, a.n_kv_heads, in_columns,
                       of_columns);
    } else {
        KVMERGE_LAUNCH(column_parts<false>, column_grid, THREADS, 0, launch.stream(), layers, a.n_kv_heads, in_columns,
                       of_columns);
    }
    KVMERGE_LAUNCH(whole_columns, dim3(ceil_div(a.n_cells, 256), heads), 256, 0, launch.stream(), layers, a.n_kv_heads,
                   column_parts_n, of_columns);
}

void score_stats_all(const ScoreStatsArgs * args, int n) {
    if (n == 0) {
        return;
    }
    in_groups(
        args, n, layers_of_launch(args->n_kv_heads, args->n_cells),
        [](const ScoreStatsArgs & a) { return static_cast<const void *>(a.q); },
        [](const ScoreStatsArgs & a, const ScoreStatsArgs & b) {
            return a.n_kv_heads == b.n_kv_heads && a.heads_per_kv == b.heads_per_kv && a.n_rows == b.n_rows &&
                   a.n_cells == b.n_cells && a.keys.type == b.keys.type && a.keys.dim == b.keys.dim &&
                   a.keys.transposed == b.keys.transposed;
        },
        layers_at_once);
}

} // namespace cuda
} // namespace kvmerge
