// What attention did, on the GPU: from the probabilities, or from the queries and the cached keys.
#include "common.cuh"

#include <algorithm>

namespace kvmerge {
namespace cuda {

// A thread block takes a tile of cells and a chunk of rows. Column sums stay in registers, row sums go through the
// warp. Partial sums are added up in a fixed order afterwards, so that the same input gives the same bits; atomics
// would not.
constexpr int THREADS = 128;
constexpr int CELLS_A_THREAD = 4; // one float4
constexpr int TILE = THREADS * CELLS_A_THREAD;
constexpr int CHUNK = 64; // rows

// A KV head's rows are those of its query heads, one head after another.
struct Matrix {
    const float * x;
    std::ptrdiff_t head_stride, row_stride;
    int heads_per_kv, n_rows, n_cells;
    __device__ const float * row(int kv_head, int r) const {
        return x + std::ptrdiff_t(kv_head * heads_per_kv + r / n_rows) * head_stride +
               std::ptrdiff_t(r % n_rows) * row_stride;
    }
};

// How scores become probabilities. Empty where the matrix holds probabilities already.
struct Softmax {
    const float * lse; // [KV heads][heads_per_kv * rows]; null: the matrix holds probabilities
    const uint16_t * mask;
    std::ptrdiff_t mask_stride;
    float scale, cap;
    __device__ float score(float dot) const { return cap != 0 ? cap * tanhf(scale * dot / cap) : scale * dot; }
    __device__ bool hides(int r, int c) const { return mask && mask[r * mask_stride + c] == HIDDEN; }
};

template <bool VECTOR>
__global__ void __launch_bounds__(THREADS)
    tiles(Matrix m, Softmax softmax, int half_powers, float * column_part, float * row_part) {
    __shared__ float row_sum[CHUNK][THREADS / WARP];
    const int c0 = blockIdx.x * TILE + threadIdx.x * CELLS_A_THREAD, chunk = blockIdx.y, kv_head = blockIdx.z;
    const int rows = m.heads_per_kv * m.n_rows, first = chunk * CHUNK, last = min(rows, first + CHUNK);
    float column[CELLS_A_THREAD] = {};
    for (int r = first; r < last; r++) {
        const float * const row = m.row(kv_head, r);
        float x[CELLS_A_THREAD] = {};
        if (VECTOR && c0 + CELLS_A_THREAD <= m.n_cells) {
            const float4 four = *reinterpret_cast<const float4 *>(row + c0);
            x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
        } else {
            for (int i = 0; i < CELLS_A_THREAD; i++) {
                x[i] = c0 + i < m.n_cells ? row[c0 + i] : 0.0f;
            }
        }
        if (softmax.lse) {
            const float lse = softmax.lse[kv_head * rows + r];
            for (int i = 0; i < CELLS_A_THREAD; i++) {
                const bool shown = c0 + i < m.n_cells && !softmax.hides(r % m.n_rows, c0 + i);
                x[i] = shown ? expf(softmax.score(x[i]) - lse) : 0.0f;
            }
        }
        float sum = 0;
        for (int i = 0; i < CELLS_A_THREAD; i++) {
            column[i] += sharpened(x[i], half_powers);
            sum -= x[i] == 0.0f ? 0.0f : x[i] * __logf(x[i]);
        }
        if (row_part) {
            sum = warp_sum(sum);
            if (threadIdx.x % WARP == 0) {
                row_sum[r - first][threadIdx.x / WARP] = sum;
            }
        }
    }
    for (int i = 0; i < CELLS_A_THREAD; i++) {
        if (c0 + i < m.n_cells) {
            column_part[(std::ptrdiff_t(kv_head) * gridDim.y + chunk) * m.n_cells + c0 + i] = column[i];
        }
    }
    if (row_part) {
        __syncthreads();
        if (first + int(threadIdx.x) < last) {
            float sum = 0;
            for (int w = 0; w < THREADS / WARP; w++) {
                sum += row_sum[threadIdx.x][w];
            }
            row_part[(std::ptrdiff_t(kv_head) * rows + first + threadIdx.x) * gridDim.x + blockIdx.x] = sum;
        }
    }
}

__global__ void add_columns(const float * part, int chunks, int n_cells, float * mass, std::ptrdiff_t mass_stride) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x, kv_head = blockIdx.y;
    if (c < n_cells) {
        float sum = 0;
        for (int k = 0; k < chunks; k++) {
            sum += part[(std::ptrdiff_t(kv_head) * chunks + k) * n_cells + c];
        }
        mass[kv_head * mass_stride + c] += sum;
    }
}

__global__ void add_rows(const float * part, int n_tiles, int all_rows, int n_rows, const float * inverse,
                         float * entropy, std::ptrdiff_t entropy_stride) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r < all_rows) {
        float sum = 0;
        for (int t = 0; t < n_tiles; t++) {
            sum += part[std::ptrdiff_t(r) * n_tiles + t];
        }
        entropy[r / n_rows * entropy_stride + r % n_rows] = clamped_entropy(sum, inverse[r % n_rows]);
    }
}

static void launch_tiles(const Launch & launch, bool vector, const Matrix & m, const Softmax & softmax, int n_kv_heads,
                         int half_powers, float * mass, std::ptrdiff_t mass_stride, float * row_part) {
    const dim3 grid(ceil_div(m.n_cells, TILE), ceil_div(m.heads_per_kv * m.n_rows, CHUNK), n_kv_heads);
    const Scratch<float> part(launch, size_t(grid.y) * n_kv_heads * m.n_cells);
    if (vector) {
        KVMERGE_LAUNCH(tiles<true>, grid, THREADS, 0, launch.stream(), m, softmax, half_powers, part.data(), row_part);
    } else {
        KVMERGE_LAUNCH(tiles<false>, grid, THREADS, 0, launch.stream(), m, softmax, half_powers, part.data(), row_part);
    }
    if (!mass) {
        return;
    }
    KVMERGE_LAUNCH(add_columns, dim3(ceil_div(m.n_cells, 256), n_kv_heads), 256, 0, launch.stream(), part.data(),
                   int(grid.y), m.n_cells, mass, mass_stride);
}

static bool is_aligned(const float * x, std::ptrdiff_t a, std::ptrdiff_t b) {
    return reinterpret_cast<size_t>(x) % sizeof(float4) == 0 && a % 4 == 0 && b % 4 == 0;
}

void attention_stats(const AttentionStatsArgs & a) {
    const Launch launch(a.p);
    if (!launch.fine()) {
        return;
    }
    const int rows = a.n_kv_heads * a.heads_per_kv * a.n_rows, n_tiles = ceil_div(a.n_cells, TILE);
    const Scratch<float> row_part(launch, a.entropy ? size_t(rows) * n_tiles : 0);
    launch_tiles(launch, is_aligned(a.p, a.head_stride, a.row_stride),
                 {a.p, a.head_stride, a.row_stride, a.heads_per_kv, a.n_rows, a.n_cells}, {}, a.n_kv_heads,
                 a.half_powers, a.mass, a.mass_stride, a.entropy ? row_part.data() : nullptr);
    if (a.entropy) {
        KVMERGE_LAUNCH(add_rows, ceil_div(rows, 128), 128, 0, launch.stream(), row_part.data(), n_tiles, rows, a.n_rows,
                       a.inv_log_visible, a.entropy, a.entropy_stride);
    }
}

// ---- from queries and keys -----------------------------------------------------------------------------------------

// Scores of a KV head, [heads_per_kv * rows][n_cells], not scaled yet. A thread block makes 64 cells by 32 rows, and
// takes 16 dimensions at a time through shared memory.
constexpr int QK_CELLS = 64, QK_ROWS = 32, QK_DIMS = 16;

__global__ void __launch_bounds__(256)
    products(Matrix q, CellView keys, int first_kv_head, int first_head, int n_cells, float * scores) {
    __shared__ float k_tile[QK_DIMS][QK_CELLS + 1], q_tile[QK_DIMS][QK_ROWS + 1];
    const int rows = q.heads_per_kv * q.n_rows, c0 = blockIdx.x * QK_CELLS, r0 = blockIdx.y * QK_ROWS,
              head = first_head + blockIdx.z;
    const int tc = threadIdx.x % 16, tr = threadIdx.x / 16;
    float sum[4][2] = {}; // cells tc + 16 i, rows tr + 16 j
    for (int d0 = 0; d0 < keys.dim; d0 += QK_DIMS) {
        for (int i = threadIdx.x; i < QK_DIMS * QK_CELLS; i += blockDim.x) {
            const int d = i % QK_DIMS, c = i / QK_DIMS;
            k_tile[d][c] =
                d0 + d < keys.dim && c0 + c < n_cells ? load_cell(keys, first_kv_head + head, c0 + c, d0 + d) : 0.0f;
        }
        for (int i = threadIdx.x; i < QK_DIMS * QK_ROWS; i += blockDim.x) {
            const int d = i % QK_DIMS, r = i / QK_DIMS;
            q_tile[d][r] = d0 + d < keys.dim && r0 + r < rows ? q.row(head, r0 + r)[d0 + d] : 0.0f;
        }
        __syncthreads();
        for (int d = 0; d < QK_DIMS; d++) {
            for (int i = 0; i < 4; i++) {
                for (int j = 0; j < 2; j++) {
                    sum[i][j] += k_tile[d][tc + 16 * i] * q_tile[d][tr + 16 * j];
                }
            }
        }
        __syncthreads();
    }
    for (int i = 0; i < 4; i++) {
        for (int j = 0; j < 2; j++) {
            const int c = c0 + tc + 16 * i, r = r0 + tr + 16 * j;
            if (c < n_cells && r < rows) {
                scores[(std::ptrdiff_t(blockIdx.z) * rows + r) * n_cells + c] = sum[i][j];
            }
        }
    }
}

// Queries as [KV head][row][dim] in half precision, for the tensor cores.
__global__ void pack_queries(Matrix q, int first_head, int dim, uint16_t * out) {
    const int r = blockIdx.x, rows = q.heads_per_kv * q.n_rows;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        out[(std::ptrdiff_t(blockIdx.y) * rows + r) * dim + i] =
            __half_as_ushort(__float2half_rn(q.row(first_head + blockIdx.y, r)[i]));
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

constexpr int ROW_THREADS = 128;

__global__ void __launch_bounds__(ROW_THREADS)
    rows_of_scores(Matrix m, Softmax softmax, int first_head, float * lse, const float * inverse, float * entropy,
                   std::ptrdiff_t entropy_stride) {
    __shared__ Online part[ROW_THREADS / WARP];
    const int r = blockIdx.x, kv_head = blockIdx.y, rows = m.heads_per_kv * m.n_rows;
    const float * const row = m.row(kv_head, r);
    Online sum;
    for (int c = threadIdx.x; c < m.n_cells; c += ROW_THREADS) {
        if (!softmax.hides(r % m.n_rows, c)) {
            sum.add(softmax.score(row[c]));
        }
    }
    for (int o = WARP / 2; o > 0; o /= 2) {
        const float m2 = __shfl_xor_sync(ALL_LANES, sum.m, o), l2 = __shfl_xor_sync(ALL_LANES, sum.l, o),
                    t2 = __shfl_xor_sync(ALL_LANES, sum.t, o);
        sum.merge(m2, l2, t2);
    }
    if (threadIdx.x % WARP == 0) {
        part[threadIdx.x / WARP] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int w = 1; w < ROW_THREADS / WARP; w++) {
            sum.merge(part[w].m, part[w].l, part[w].t);
        }
        // For a row that sees nothing the log-sum-exp is infinity, which makes every probability 0.
        lse[kv_head * rows + r] = sum.l == 0.0f ? INFINITY : sum.m == -INFINITY ? sum.l : sum.m + logf(sum.l);
        if (entropy) {
            const int h = (first_head + kv_head) * m.heads_per_kv + r / m.n_rows;
            const float nats = sum.l == 0.0f ? 0.0f : logf(sum.l) - sum.t / sum.l;
            entropy[h * entropy_stride + r % m.n_rows] = clamped_entropy(nats, inverse[r % m.n_rows]);
        }
    }
}

// Scores are made for a few KV heads at a time, no more than the second-level cache holds, so that they are read from
// the cache that they were written to.
constexpr size_t SCRATCH_BYTES = size_t(32) << 20;

void score_stats(const ScoreStatsArgs & a) {
    const Launch launch(a.q);
    if (!launch.fine()) {
        return;
    }
    const int rows = a.heads_per_kv * a.n_rows, dim = a.keys.dim;
    const size_t head_bytes = size_t(rows) * a.n_cells * sizeof(float);
    const int at_once = int(std::clamp<size_t>(SCRATCH_BYTES / head_bytes, 1, size_t(a.n_kv_heads)));
    const Scratch<float> scores(launch, size_t(at_once) * rows * a.n_cells), lse(launch, size_t(at_once) * rows);
    const bool half = a.keys.type == CELL_F16 && !a.keys.transposed;
    const Scratch<uint16_t> packed(launch, half ? size_t(at_once) * rows * dim : 0);
    const Matrix q = {a.q, a.head_stride, a.row_stride, a.heads_per_kv, a.n_rows, 0};
    for (int h0 = 0; h0 < a.n_kv_heads; h0 += at_once) {
        const int n = std::min(at_once, a.n_kv_heads - h0);
        bool done = false;
        if (half) {
            KVMERGE_LAUNCH(pack_queries, dim3(rows, n), 64, 0, launch.stream(), q, h0, dim, packed.data());
            const char * keys =
                static_cast<const char *>(a.keys.data) + size_t(a.first_kv_head + h0) * dim * sizeof(uint16_t);
            done = cublas_scores(launch, keys, a.keys.cell_bytes / std::ptrdiff_t(sizeof(uint16_t)), packed.data(), n,
                                 rows, a.n_cells, dim, scores.data());
        }
        if (!done) {
            KVMERGE_LAUNCH(products, dim3(ceil_div(a.n_cells, QK_CELLS), ceil_div(rows, QK_ROWS), n), 256, 0,
                           launch.stream(), q, a.keys, a.first_kv_head, h0, a.n_cells, scores.data());
        }
        const Matrix s = {scores.data(), std::ptrdiff_t(a.n_rows) * a.n_cells, a.n_cells, a.heads_per_kv, a.n_rows,
                          a.n_cells};
        const Softmax softmax = {lse.data(), a.mask, a.mask_stride, a.scale, a.cap};
        KVMERGE_LAUNCH(rows_of_scores, dim3(rows, n), ROW_THREADS, 0, launch.stream(), s, softmax, h0, lse.data(),
                       a.inv_log_visible, a.entropy, a.entropy_stride);
        if (a.mass) {
            launch_tiles(launch, is_aligned(scores.data(), s.head_stride, s.row_stride), s, softmax, n, a.half_powers,
                         a.mass + h0 * a.mass_stride, a.mass_stride, nullptr);
        }
    }
}

} // namespace cuda
} // namespace kvmerge
