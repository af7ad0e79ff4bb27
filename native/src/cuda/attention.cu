// What attention did, on the GPU, from its probabilities. scores.cu does the same from queries and keys.
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

template <bool VECTOR>
__global__ void __launch_bounds__(THREADS) tiles(Matrix m, int half_powers, float * column_part, float * row_part) {
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

static int parts_of_columns(int heads_per_kv, int n_rows) {
    return ceil_div(heads_per_kv * n_rows, CHUNK);
}

static void launch_tiles(Launch & launch, bool vector, const Matrix & m, int n_kv_heads, int half_powers, float * mass,
                         std::ptrdiff_t mass_stride, float * row_part) {
    const dim3 grid(ceil_div(m.n_cells, TILE), parts_of_columns(m.heads_per_kv, m.n_rows), n_kv_heads);
    float * const part = launch.scratch<float>(size_t(grid.y) * n_kv_heads * m.n_cells);
    if (!launch.fine()) {
        return;
    }
    if (vector) {
        KVMERGE_LAUNCH(tiles<true>, grid, THREADS, 0, launch.stream(), m, half_powers, part, row_part);
    } else {
        KVMERGE_LAUNCH(tiles<false>, grid, THREADS, 0, launch.stream(), m, half_powers, part, row_part);
    }
    if (!mass) {
        return;
    }
    KVMERGE_LAUNCH(add_columns, dim3(ceil_div(m.n_cells, 256), n_kv_heads), 256, 0, launch.stream(), part, int(grid.y),
                   m.n_cells, mass, mass_stride);
}

static bool is_aligned(const float * x, std::ptrdiff_t a, std::ptrdiff_t b) {
    return reinterpret_cast<size_t>(x) % sizeof(float4) == 0 && a % 4 == 0 && b % 4 == 0;
}

size_t scratch_of_attention(int n_kv_heads, int heads_per_kv, int n_rows, int n_cells) {
    const size_t rows = size_t(n_kv_heads) * size_t(heads_per_kv) * size_t(n_rows);
    return scratch_for<float>(rows * size_t(ceil_div(n_cells, TILE))) +
           scratch_for<float>(size_t(parts_of_columns(heads_per_kv, n_rows)) * size_t(n_kv_heads) * size_t(n_cells));
}

void attention_stats(const AttentionStatsArgs & a) {
    Launch launch(a.p);
    const int rows = a.n_kv_heads * a.heads_per_kv * a.n_rows, n_tiles = ceil_div(a.n_cells, TILE);
    float * const row_part = a.entropy ? launch.scratch<float>(size_t(rows) * n_tiles) : nullptr;
    launch_tiles(launch, is_aligned(a.p, a.head_stride, a.row_stride),
                 {a.p, a.head_stride, a.row_stride, a.heads_per_kv, a.n_rows, a.n_cells}, a.n_kv_heads, a.half_powers,
                 a.mass, a.mass_stride, row_part);
    if (row_part && launch.fine()) {
        KVMERGE_LAUNCH(add_rows, ceil_div(rows, 128), 128, 0, launch.stream(), row_part, n_tiles, rows, a.n_rows,
                       a.inv_log_visible, a.entropy, a.entropy_stride);
    }
}

} // namespace cuda
} // namespace kvmerge
