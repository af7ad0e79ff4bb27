// What attention did, on the GPU, from the queries and the cached keys of several layers at once.
//
// Scores are made tile by tile and never go to memory. The first pass over the keys finds each row's log-sum-exp and
// entropy, the second makes the scores again and adds probabilities up by column. Both are split so that a few rows, as
// of a generation, occupy the whole GPU too; what the parts found is then put together in a fixed order.
#include "half_scores.cuh"

#include <algorithm>

namespace kvmerge {
namespace cuda {

constexpr int THREADS = 256, CELLS = 64, ROWS = 32; // of a tile
constexpr int CELLS_A_THREAD = 4, ROWS_A_THREAD = 2;
constexpr int DIMS = 16; // that go through shared memory at a time

// A thread's part of a tile's products: cells tc + 16 i, rows tr + 16 j.
using Products = float[CELLS_A_THREAD][ROWS_A_THREAD];

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

constexpr int SHARED = std::max(DIMS * (CELLS + ROWS + 2), THREADS / 16 * CELLS); // floats

// Whether a row of a KV head, of those that there are, sees a cell.
__device__ inline bool sees(const Scores & s, int r, int c) {
    return r < s.rows() && s.shows(r % s.a.n_rows, c);
}

// Thread blocks: (tiles of rows, parts of the cells, layers and KV heads). part: [layer and KV head][row][parts][3].
__global__ void __launch_bounds__(THREADS) row_parts(Layers layers, int n_kv_heads, int tiles_a_part, float * part) {
    __shared__ float shared[SHARED];
    const Scores & s = layers.at[blockIdx.z / n_kv_heads];
    const int kv_head = blockIdx.z % n_kv_heads, r0 = blockIdx.x * ROWS, tc = threadIdx.x % 16, tr = threadIdx.x / 16;
    const int first = blockIdx.y * tiles_a_part * CELLS, last = min(s.a.n_cells, first + tiles_a_part * CELLS);
    Online sum[ROWS_A_THREAD];
    for (int c0 = first; c0 < last; c0 += CELLS) {
        Products product;
        multiply(s, kv_head, r0, c0, shared, product);
        for (int i = 0; i < CELLS_A_THREAD; i++) {
            for (int j = 0; j < ROWS_A_THREAD; j++) {
                if (sees(s, r0 + tr + 16 * j, c0 + tc + 16 * i)) {
                    sum[j].add(s.score(product[i][j]));
                }
            }
        }
    }
    for (int j = 0; j < ROWS_A_THREAD; j++) { // the 16 threads of a row are half a warp
        for (int o = 8; o > 0; o /= 2) {
            sum[j].merge_lanes(o);
        }
        const int r = r0 + tr + 16 * j;
        if (tc == 0 && r < s.rows()) {
            float * const out = part + ((std::ptrdiff_t(blockIdx.z) * s.rows() + r) * gridDim.y + blockIdx.y) * 3;
            out[0] = sum[j].m, out[1] = sum[j].l, out[2] = sum[j].t;
        }
    }
}

constexpr int WHOLE_ROWS = 4; // of a thread block

// A warp puts the parts of a row together: of one row of a long context there are hundreds.
__global__ void whole_rows(Layers layers, int n_kv_heads, int parts, const float * part) {
    const Scores & s = layers.at[blockIdx.y / n_kv_heads];
    const int kv_head = blockIdx.y % n_kv_heads, r = blockIdx.x * WHOLE_ROWS + threadIdx.x / WARP;
    if (r >= s.rows()) {
        return;
    }
    Online sum;
    for (int p = threadIdx.x % WARP; p < parts; p += WARP) {
        const float * const of = part + ((std::ptrdiff_t(blockIdx.y) * s.rows() + r) * parts + p) * 3;
        sum.merge(of[0], of[1], of[2]);
    }
    for (int o = WARP / 2; o > 0; o /= 2) {
        sum.merge_lanes(o);
    }
    if (threadIdx.x % WARP != 0) {
        return;
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
__global__ void __launch_bounds__(THREADS) column_parts(Layers layers, int n_kv_heads, int tiles_a_part, float * part) {
    __shared__ float shared[SHARED];
    const Scores & s = layers.at[blockIdx.z / n_kv_heads];
    const int kv_head = blockIdx.z % n_kv_heads, c0 = blockIdx.x * CELLS, tc = threadIdx.x % 16, tr = threadIdx.x / 16;
    const int first = blockIdx.y * tiles_a_part * ROWS, last = min(s.rows(), first + tiles_a_part * ROWS);
    float column[CELLS_A_THREAD] = {};
    for (int r0 = first; r0 < last; r0 += ROWS) {
        Products product;
        multiply(s, kv_head, r0, c0, shared, product);
        for (int j = 0; j < ROWS_A_THREAD; j++) {
            const int r = r0 + tr + 16 * j;
            const float lse = r < s.rows() ? s.lse[kv_head * s.rows() + r] : 0.0f;
            for (int i = 0; i < CELLS_A_THREAD; i++) {
                if (sees(s, r, c0 + tc + 16 * i)) {
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

// How many layers go into one launch: few of long contexts or of many rows, so that the columns' memory and the
// queries' stays small. `queries`: elements that a layer has, rounded up to whole products.
constexpr size_t MOST_ELEMENTS = size_t(8) << 20;
static int layers_of_launch(size_t columns, size_t queries) {
    return int(std::clamp<size_t>(MOST_ELEMENTS / std::max(columns, queries), 1, MOST_LAYERS));
}

static size_t queries_of(int n_kv_heads, int heads_per_kv, int n_rows, int dim) {
    return size_t(n_kv_heads) * size_t(row_tiles_of(heads_per_kv * n_rows)) * PRODUCT_ROWS * size_t(steps_of(dim)) *
           STEP;
}

// Most that layers_at_once() takes, of up to as many rows and cells. With fewer of them more layers may go into a
// launch, until MOST_ELEMENTS are reached, and there are more parts, but for no more than ENOUGH_BLOCKS thread blocks.
size_t scratch_of_scores(int n_layers, int n_kv_heads, int heads_per_kv, int n_rows, int n_cells, int dim) {
    constexpr size_t MOST_ROWS = 4 * 32, MOST_CELLS = 4 * 32; // of a thread block, on tensor cores, where it has fewest
    const size_t layers = size_t(std::min(n_layers, MOST_LAYERS)), heads = layers * size_t(n_kv_heads),
                 rows = heads * (size_t(heads_per_kv) * size_t(n_rows) + MOST_ROWS),
                 a_layer = size_t(n_kv_heads) * (size_t(n_cells) + MOST_CELLS),
                 columns = std::min(layers * a_layer, std::max(MOST_ELEMENTS, a_layer) + a_layer),
                 of_queries = queries_of(n_kv_heads, heads_per_kv, n_rows, dim),
                 queries = std::min(layers * of_queries, std::max(MOST_ELEMENTS, of_queries)),
                 words = layers * size_t(n_rows) * size_t(words_of(n_cells));
    return scratch_for<float>(rows) + scratch_for<float>(3 * (rows + size_t(ENOUGH_BLOCKS) * 2 * MOST_ROWS)) +
           scratch_for<float>(columns + size_t(ENOUGH_BLOCKS) * MOST_CELLS) + scratch_for<uint16_t>(queries) +
           scratch_for<uint32_t>(words);
}

// Layers of one shape, on one GPU.
static void layers_at_once(const ScoreStatsArgs * args, int n) {
    Launch launch(args->q);
    const ScoreStatsArgs & a = args[0];
    const int heads = n * a.n_kv_heads, rows = a.heads_per_kv * a.n_rows, row_tiles = ceil_div(rows, ROWS),
              cell_tiles = ceil_div(a.n_cells, CELLS), words = words_of(a.n_cells);
    bool mass = false, half = true;
    for (int i = 0; i < n; i++) {
        mass |= args[i].mass != nullptr;
        half &= suits_tensor_cores(args[i].keys);
    }
    const HalfCut cut(heads, rows, a.n_cells, a.keys.dim);
    const int row_parts_n = half ? cut.parts_of_a_row() : parts_of(cell_tiles, row_tiles * heads),
              column_parts_n = half ? cut.column_parts : parts_of(row_tiles, cell_tiles * heads);
    const size_t queries = queries_of(a.n_kv_heads, a.heads_per_kv, a.n_rows, a.keys.dim);
    float * const lse = launch.scratch<float>(size_t(heads) * rows);
    float * const of_rows = launch.scratch<float>(size_t(heads) * rows * row_parts_n * 3);
    float * const of_columns = launch.scratch<float>(size_t(heads) * column_parts_n * a.n_cells);
    uint16_t * const halves = half ? launch.scratch<uint16_t>(n * queries) : nullptr;
    uint32_t * const visible = half ? launch.scratch<uint32_t>(size_t(n) * a.n_rows * words) : nullptr;
    if (!launch.fine()) {
        return;
    }
    Layers layers = {};
    for (int i = 0; i < n; i++) {
        layers.at[i] = {args[i], lse + size_t(i) * a.n_kv_heads * rows,
                        reinterpret_cast<uint4 *>(halves + i * (half ? queries : 0)),
                        visible + (half ? size_t(i) * a.n_rows * words : 0)};
    }
    const cudaStream_t stream = launch.stream();
    if (half) {
        in_steps(a.keys.dim,
                 [&](auto steps) { launch_half_rows<decltype(steps)::value>(stream, layers, n, cut, of_rows); });
    } else {
        const dim3 grid(row_tiles, row_parts_n, heads);
        KVMERGE_LAUNCH(row_parts, grid, THREADS, 0, stream, layers, a.n_kv_heads, ceil_div(cell_tiles, row_parts_n),
                       of_rows);
    }
    KVMERGE_LAUNCH(whole_rows, dim3(ceil_div(rows, WHOLE_ROWS), heads), WHOLE_ROWS * WARP, 0, stream, layers,
                   a.n_kv_heads, row_parts_n, of_rows);
    if (!mass) {
        return;
    }
    if (half) {
        in_steps(a.keys.dim,
                 [&](auto steps) { launch_half_columns<decltype(steps)::value>(stream, layers, n, cut, of_columns); });
    } else {
        const dim3 grid(cell_tiles, column_parts_n, heads);
        KVMERGE_LAUNCH(column_parts, grid, THREADS, 0, stream, layers, a.n_kv_heads,
                       ceil_div(row_tiles, column_parts_n), of_columns);
    }
    KVMERGE_LAUNCH(whole_columns, dim3(ceil_div(a.n_cells, 256), heads), 256, 0, stream, layers, a.n_kv_heads,
                   column_parts_n, of_columns);
}

void score_stats_all(const ScoreStatsArgs * args, int n) {
    if (n == 0) {
        return;
    }
    in_groups(
        args, n,
        layers_of_launch(size_t(args->n_kv_heads) * size_t(args->n_cells),
                         queries_of(args->n_kv_heads, args->heads_per_kv, args->n_rows, args->keys.dim)),
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
