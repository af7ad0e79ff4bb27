// Query moments, and the direction to fold a bias along, on the GPU, of several layers at once.
#include "common.cuh"

#include <algorithm>

namespace kvmerge {
namespace cuda {

constexpr int SIDE = 16, TILE = 2 * SIDE; // a thread makes 2 by 2 of a tile
constexpr int MOST_LAYERS = 32;           // of a launch: parameters of a kernel have 4 KB

struct MomentsOfLayers {
    QueryMomentsArgs at[MOST_LAYERS];
};
struct DirectionsOfLayers {
    FoldDirectionArgs at[MOST_LAYERS];
};
static_assert(sizeof(MomentsOfLayers) <= 4000 && sizeof(DirectionsOfLayers) <= 4000, "the parameters of a kernel");

// A thread block makes a TILE by TILE tile of a KV head's second moment, SIDE queries at a time. It is symmetric:
// blocks below the diagonal leave it to those above.
__global__ void __launch_bounds__(SIDE * SIDE) moments(MomentsOfLayers layers, int n_kv_heads) {
    __shared__ float qi[SIDE][TILE + 1], qj[SIDE][TILE + 1];
    const QueryMomentsArgs & a = layers.at[blockIdx.z / n_kv_heads];
    if (blockIdx.x < blockIdx.y) {
        return;
    }
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE, kv_head = blockIdx.z % n_kv_heads;
    const int i0 = blockIdx.y * TILE, j0 = blockIdx.x * TILE, rows = a.heads_per_kv * a.n_rows;
    float product[2][2] = {}, sum[2] = {};
    for (int r0 = 0; r0 < rows; r0 += SIDE) {
        const int r = min(r0 + y, rows - 1); // loading: a row of threads takes a query
        const float * const q = a.q + std::ptrdiff_t(kv_head * a.heads_per_kv + r / a.n_rows) * a.head_stride +
                                std::ptrdiff_t(r % a.n_rows) * a.row_stride;
        for (int k = 0; k < 2; k++) {
            const int d = x + SIDE * k;
            qi[y][d] = r0 + y < rows && i0 + d < a.dim ? q[i0 + d] : 0.0f;
            qj[y][d] = r0 + y < rows && j0 + d < a.dim ? q[j0 + d] : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < SIDE; k++) {
            for (int i = 0; i < 2; i++) {
                for (int j = 0; j < 2; j++) {
                    product[i][j] += qi[k][y + SIDE * i] * qj[k][x + SIDE * j];
                }
                sum[i] += qi[k][y + SIDE * i];
            }
        }
        __syncthreads();
    }
    float * const second = a.second + std::ptrdiff_t(kv_head) * a.dim * a.dim;
    for (int di = 0; di < 2; di++) {
        const int i = i0 + y + SIDE * di;
        for (int dj = 0; dj < 2; dj++) {
            const int j = j0 + x + SIDE * dj;
            if (i < a.dim && j < a.dim) {
                const float total = second[std::ptrdiff_t(i) * a.dim + j] * a.keep + product[di][dj];
                second[std::ptrdiff_t(i) * a.dim + j] = total;
                if (blockIdx.x > blockIdx.y) {
                    second[std::ptrdiff_t(j) * a.dim + i] = total;
                }
            }
        }
        if (i < a.dim && x == 0 && blockIdx.x == blockIdx.y) {
            float & total = a.sum[std::ptrdiff_t(kv_head) * a.dim + i];
            total = total * a.keep + sum[di];
        }
    }
}

void query_moments_all(const QueryMomentsArgs * args, int n) {
    in_groups(
        args, n, MOST_LAYERS, [](const QueryMomentsArgs & a) { return static_cast<const void *>(a.q); },
        [](const QueryMomentsArgs & a, const QueryMomentsArgs & b) {
            return a.n_kv_heads == b.n_kv_heads && a.dim == b.dim;
        },
        [](const QueryMomentsArgs * first, int count) {
            const Launch launch(first->q);
            if (launch.fine()) {
                MomentsOfLayers layers = {};
                std::copy_n(first, count, layers.at);
                const int tiles = ceil_div(first->dim, TILE);
                KVMERGE_LAUNCH(moments, dim3(tiles, tiles, count * first->n_kv_heads), SIDE * SIDE, 0, launch.stream(),
                               layers, first->n_kv_heads);
            }
        });
}

constexpr int SOLVE_THREADS = 256, SOLVE_WARPS = SOLVE_THREADS / WARP;
constexpr int REFINEMENTS = 2;
constexpr size_t MOST_SHARED = 40 << 10; // bytes of a thread block's triangle; larger ones lie in the GPU's memory

__host__ __device__ constexpr int triangle(int rows) {
    return rows * (rows + 1) / 2;
}

// Solves L L' x = x for one warp. Row i of L starts at triangle(i). inverse: 1 / the diagonal of L.
__device__ inline void solve_triangles(const float * lower, const double * inverse, double * x, int dim) {
    const int lane = threadIdx.x % WARP;
    for (int k = 0; k < dim; k++) {
        const double solved = x[k] * inverse[k];
        __syncwarp();
        for (int i = k + 1 + lane; i < dim; i += WARP) {
            x[i] -= solved * lower[triangle(i) + k];
        }
        if (lane == 0) {
            x[k] = solved;
        }
        __syncwarp();
    }
    for (int k = dim - 1; k >= 0; k--) {
        const double solved = x[k] * inverse[k];
        __syncwarp();
        for (int i = lane; i < k; i += WARP) {
            x[i] -= solved * lower[triangle(k) + i];
        }
        if (lane == 0) {
            x[k] = solved;
        }
        __syncwarp();
    }
}

// A thread block solves one head's system: Cholesky's factor in single precision, in shared memory where it fits, then
// residuals in double precision until the solution has the accuracy of that. The ridge bounds the condition by 20 times
// the dimension.
__global__ void __launch_bounds__(SOLVE_THREADS) solve(DirectionsOfLayers layers, int n, float * work) {
    KVMERGE_DYNAMIC_SHARED(double, shared);
    const FoldDirectionArgs & a = layers.at[blockIdx.x / n];
    const int d = a.dim, t = threadIdx.x, lane = t % WARP, warp = t / WARP, head = blockIdx.x % n;
    const float * const second = a.second + std::ptrdiff_t(head) * d * d;
    const float * const sum = a.sum + std::ptrdiff_t(head) * d;
    double * const x = shared; // the right side, then a correction
    double * const u = x + d;
    double * const inverse = u + d;                                       // of the factor's diagonal
    double * const part = inverse + d;                                    // [SOLVE_WARPS]
    float * const column = reinterpret_cast<float *>(part + SOLVE_WARPS); // of the factor
    float * const lower = work ? work + std::ptrdiff_t(blockIdx.x) * triangle(d) : column + d;
    double diagonal = 0;
    for (int i = t; i < d; i += SOLVE_THREADS) {
        diagonal += second[std::ptrdiff_t(i) * d + i] * a.inverse_weight;
        u[i] = 0;
        x[i] = sum[i] * a.inverse_weight;
    }
    for (int o = WARP / 2; o > 0; o /= 2) {
        diagonal += __shfl_xor_sync(ALL_LANES, diagonal, o);
    }
    if (lane == 0) {
        part[warp] = diagonal;
    }
    __syncthreads();
    double trace = 0;
    for (int w = 0; w < SOLVE_WARPS; w++) {
        trace += part[w];
    }
    if (trace <= 0) { // a NaN goes on to the result
        for (int i = t; i < d; i += SOLVE_THREADS) {
            a.u[std::ptrdiff_t(head) * d + i] = 0;
        }
        return;
    }
    const double ridge = a.ridge * trace / d;
    for (int i = warp; i < d; i += SOLVE_WARPS) {
        for (int j = lane; j <= i; j += WARP) {
            lower[triangle(i) + j] =
                float(second[std::ptrdiff_t(i) * d + j] * a.inverse_weight + (i == j ? ridge : 0.0));
        }
    }
    __syncthreads();
    for (int k = 0; k < d; k++) {
        const float root = sqrtf(lower[triangle(k) + k]);
        for (int i = k + 1 + t; i < d; i += SOLVE_THREADS) {
            column[i] = lower[triangle(i) + k] /= root;
        }
        if (t == 0) {
            inverse[k] = 1 / double(root);
        }
        __syncthreads();
        for (int i = k + 1 + warp; i < d; i += SOLVE_WARPS) {
            const float f = column[i];
            for (int j = k + 1 + lane; j <= i; j += WARP) {
                lower[triangle(i) + j] -= f * column[j];
            }
        }
        __syncthreads();
    }
    for (int step = 0;; step++) {
        if (warp == 0) {
            solve_triangles(lower, inverse, x, d);
            for (int i = lane; i < d; i += WARP) {
                u[i] += x[i];
            }
        }
        __syncthreads();
        if (step == REFINEMENTS) {
            break;
        }
        for (int i = warp; i < d; i += SOLVE_WARPS) { // what is still missing
            double product = 0;
            for (int j = lane; j < d; j += WARP) {
                product += double(second[std::ptrdiff_t(i) * d + j]) * u[j];
            }
            for (int o = WARP / 2; o > 0; o /= 2) {
                product += __shfl_xor_sync(ALL_LANES, product, o);
            }
            if (lane == 0) {
                x[i] = sum[i] * a.inverse_weight - product * a.inverse_weight - ridge * u[i];
            }
        }
        __syncthreads();
    }
    for (int i = t; i < d; i += SOLVE_THREADS) {
        a.u[std::ptrdiff_t(head) * d + i] = float(u[i]);
    }
}

size_t scratch_of_directions(int n_layers, int n_kv_heads, int dim) {
    const size_t lower = size_t(triangle(dim)) * sizeof(float);
    return lower <= MOST_SHARED ? 0 : scratch_for<char>(size_t(std::min(n_layers, MOST_LAYERS) * n_kv_heads) * lower);
}

void fold_direction_all(const FoldDirectionArgs * args, int n) {
    in_groups(
        args, n, MOST_LAYERS, [](const FoldDirectionArgs & a) { return static_cast<const void *>(a.second); },
        [](const FoldDirectionArgs & a, const FoldDirectionArgs & b) { return a.n == b.n && a.dim == b.dim; },
        [](const FoldDirectionArgs * first, int count) {
            Launch launch(first->second);
            const int dim = first->dim, blocks = count * first->n;
            const size_t vectors = size_t(3 * dim + SOLVE_WARPS) * sizeof(double) + size_t(dim) * sizeof(float),
                         lower = size_t(triangle(dim)) * sizeof(float);
            const bool fits = lower <= MOST_SHARED;
            float * const work = fits ? nullptr : launch.scratch<float>(size_t(blocks) * triangle(dim));
            if (!launch.fine()) {
                return;
            }
            DirectionsOfLayers layers = {};
            std::copy_n(first, count, layers.at);
            KVMERGE_LAUNCH(solve, blocks, SOLVE_THREADS, vectors + (fits ? lower : 0), launch.stream(), layers,
                           first->n, work);
        });
}

} // namespace cuda
} // namespace kvmerge
