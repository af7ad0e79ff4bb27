// The direction to fold a bias along, on the GPU, of several layers at once.
#include "common.cuh"

#include <algorithm>

namespace kvmerge {
namespace cuda {

constexpr int MOST_LAYERS = 32; // of a launch: parameters of a kernel have 4 KB

struct DirectionsOfLayers {
    FoldDirectionArgs at[MOST_LAYERS];
};
static_assert(sizeof(DirectionsOfLayers) <= 4000, "the parameters of a kernel");

constexpr int REFINEMENTS = 2;

// What a thread block is given of a launch: one head's system.
struct System {
    const FoldDirectionArgs & a;
    const float *second, *sum;
    float * u;
    __device__ System(const DirectionsOfLayers & layers, int n)
        : a(layers.at[blockIdx.x / n]), second(a.second + std::ptrdiff_t(blockIdx.x % n) * a.dim * a.dim),
          sum(a.sum + std::ptrdiff_t(blockIdx.x % n) * a.dim), u(a.u + std::ptrdiff_t(blockIdx.x % n) * a.dim) {}
    // Of the mean. All lanes of a warp call it.
    __device__ double trace() const {
        double trace = 0;
        for (int i = threadIdx.x % WARP; i < a.dim; i += WARP) {
            trace += second[std::ptrdiff_t(i) * a.dim + i] * a.inverse_weight;
        }
        for (int o = WARP / 2; o > 0; o /= 2) {
            trace += __shfl_xor_sync(ALL_LANES, trace, o);
        }
        return trace;
    }
    __device__ void answer_zeros() const {
        for (int i = threadIdx.x; i < a.dim; i += blockDim.x) {
            u[i] = 0;
        }
    }
};

constexpr int EDGE = 8; // a thread has EDGE by EDGE elements of a matrix in its registers

// Of the lower triangle, which is GRID by GRID tiles; rounded up to warps.
__host__ __device__ constexpr int threads_of(int grid) {
    return (grid * (grid + 1) / 2 + WARP - 1) / WARP * WARP;
}

// A thread block inverts one head's matrix, of up to EDGE * GRID dimensions, in single precision. It sweeps one
// dimension after the other, which needs the same work of all threads at each, one barrier, and no more of the others
// than a column. Then residuals in double precision, until the solution has the accuracy of that; each takes only
// products, where factors would have to be solved one dimension after the other. The ridge bounds the condition by the
// dimension over the ridge: below SMALL_RIDGE a sweep in single precision loses too much.
template <int GRID>
__global__ void __launch_bounds__(threads_of(GRID), GRID <= 16 ? 3 : 1) invert(DirectionsOfLayers layers, int n) {
    constexpr int DIMS = EDGE * GRID, THREADS = threads_of(GRID);
    __shared__ float4 columns[2][2][GRID]; // taken in turns: [first or second half of a tile][tile]
    __shared__ float right[DIMS];          // the right side, then what is still missing; zeros behind it
    __shared__ double solution[DIMS];
    __shared__ float part[GRID][DIMS]; // of a product
    const System s(layers, n);
    const int dim = s.a.dim, t = threadIdx.x, row = int(sqrtf(float(8 * t + 1)) - 1) / 2,
              column = t - row * (row + 1) / 2; // of this thread's tile; those of the threads behind the last are
                                                // unused
    const double trace = s.trace();
    if (trace <= 0) { // a NaN goes on to the result
        s.answer_zeros();
        return;
    }
    const double ridge = s.a.ridge * trace / dim;
    float v[EDGE][EDGE];
#pragma unroll
    for (int i = 0; i < EDGE; i++) {
#pragma unroll
        for (int j = 0; j < EDGE; j++) {
            const int r = row * EDGE + i, c = column * EDGE + j;
            v[i][j] = r < dim && c < dim
                          ? float(s.second[std::ptrdiff_t(r) * dim + c] * s.a.inverse_weight + (r == c ? ridge : 0.0))
                          : 0.0f;
        }
    }
    for (int i = t; i < DIMS; i += THREADS) {
        right[i] = i < dim ? float(s.sum[i] * s.a.inverse_weight) : 0.0f;
        solution[i] = 0;
    }
    const bool has_tile = row < GRID;
    for (int tile = 0; tile * EDGE < dim; tile++) {
#pragma unroll
        for (int k = 0; k < EDGE; k++) { // sweeps dimension tile * EDGE + k
            if (tile * EDGE + k >= dim) {
                break;
            }
            float4(*const swept)[GRID] = columns[k % 2];
            if (column == tile && has_tile) {
                swept[0][row] = {v[0][k], v[1][k], v[2][k], v[3][k]};
                swept[1][row] = {v[4][k], v[5][k], v[6][k], v[7][k]};
            } else if (row == tile) {
                swept[0][column] = {v[k][0], v[k][1], v[k][2], v[k][3]};
                swept[1][column] = {v[k][4], v[k][5], v[k][6], v[k][7]};
            }
            __syncthreads();
            if (!has_tile) {
                continue;
            }
            const float4 r0 = swept[0][row], r1 = swept[1][row], c0 = swept[0][column], c1 = swept[1][column],
                         pivots = swept[k / 4][tile];
            const float of_row[EDGE] = {r0.x, r0.y, r0.z, r0.w, r1.x, r1.y, r1.z, r1.w},
                        pivot = k % 4 == 0   ? pivots.x
                                : k % 4 == 1 ? pivots.y
                                : k % 4 == 2 ? pivots.z
                                             : pivots.w,
                        inverse = __fdividef(1, pivot);
            float of_column[EDGE] = {c0.x, c0.y, c0.z, c0.w, c1.x, c1.y, c1.z, c1.w};
#pragma unroll
            for (int j = 0; j < EDGE; j++) {
                of_column[j] *= inverse;
#pragma unroll
                for (int i = 0; i < EDGE; i++) {
                    v[i][j] -= of_row[i] * of_column[j];
                }
            }
            if (row == tile) {
#pragma unroll
                for (int j = 0; j < EDGE; j++) {
                    v[k][j] = of_column[j];
                }
            }
            if (column == tile) {
#pragma unroll
                for (int i = 0; i < EDGE; i++) {
                    v[i][k] = of_row[i] * inverse;
                }
                v[k][k] = row == tile ? -inverse : v[k][k];
            }
        }
    }
    // v is minus the inverse.
    for (int step = 0;; step++) {
        __syncthreads();
        if (has_tile) { // both triangles' products
            float by_row[EDGE] = {}, by_column[EDGE] = {};
#pragma unroll
            for (int i = 0; i < EDGE; i++) {
#pragma unroll
                for (int j = 0; j < EDGE; j++) {
                    by_row[i] -= v[i][j] * right[column * EDGE + j];
                    by_column[j] -= v[i][j] * right[row * EDGE + i];
                }
            }
#pragma unroll
            for (int i = 0; i < EDGE; i++) {
                part[column][row * EDGE + i] = by_row[i];
                if (row != column) {
                    part[row][column * EDGE + i] = by_column[i];
                }
            }
        }
        __syncthreads();
        for (int i = t; i < dim; i += THREADS) {
            float sum = 0;
            for (int k = 0; k < GRID; k++) {
                sum += part[k][i];
            }
            solution[i] += sum;
        }
        if (step == REFINEMENTS) {
            break;
        }
        __syncthreads();
        for (int i = t; i < dim; i += THREADS) { // what is still missing; rows are columns
            double product = 0;
#pragma unroll 8
            for (int j = 0; j < dim; j++) {
                product += s.second[std::ptrdiff_t(j) * dim + i] * solution[j];
            }
            right[i] = float((s.sum[i] - product) * s.a.inverse_weight - ridge * solution[i]);
        }
    }
    for (int i = t; i < dim; i += THREADS) {
        s.u[i] = float(solution[i]);
    }
}

constexpr double SMALL_RIDGE = 1e-3;
constexpr int MOST_INVERTED = 256; // dimensions; a larger matrix does not fit into a thread block's registers
constexpr int SOLVE_THREADS = 256, SOLVE_WARPS = SOLVE_THREADS / WARP;

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

// The same by Cholesky's factor in the GPU's memory, for large matrices.
__global__ void __launch_bounds__(SOLVE_THREADS) solve(DirectionsOfLayers layers, int n, float * work) {
    KVMERGE_DYNAMIC_SHARED(double, shared);
    const System s(layers, n);
    const FoldDirectionArgs & a = s.a;
    const int d = a.dim, t = threadIdx.x, lane = t % WARP, warp = t / WARP;
    const float *const second = s.second, *const sum = s.sum;
    double * const x = shared; // the right side, then a correction
    double * const u = x + d;
    double * const inverse = u + d;                                // of the factor's diagonal
    float * const column = reinterpret_cast<float *>(inverse + d); // of the factor
    float * const lower = work + std::ptrdiff_t(blockIdx.x) * triangle(d);
    const double trace = s.trace();
    if (trace <= 0) {
        s.answer_zeros();
        return;
    }
    for (int i = t; i < d; i += SOLVE_THREADS) {
        u[i] = 0;
        x[i] = sum[i] * a.inverse_weight;
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
        s.u[i] = float(u[i]);
    }
}

static bool inverts(const FoldDirectionArgs & a) {
    return a.dim <= MOST_INVERTED && a.ridge >= SMALL_RIDGE;
}

// A ridge that is smaller than usual takes more, which is taken when it comes.
size_t scratch_of_directions(int n_layers, int n_kv_heads, int dim) {
    return dim <= MOST_INVERTED
               ? 0
               : scratch_for<float>(size_t(std::min(n_layers, MOST_LAYERS) * n_kv_heads) * size_t(triangle(dim)));
}

// Layers of one shape, on one GPU.
static void directions_at_once(const FoldDirectionArgs * first, int count) {
    Launch launch(first->second);
    const int dim = first->dim, blocks = count * first->n;
    float * const work = inverts(*first) ? nullptr : launch.scratch<float>(size_t(blocks) * triangle(dim));
    if (!launch.fine()) {
        return;
    }
    DirectionsOfLayers layers = {};
    std::copy_n(first, count, layers.at);
    const cudaStream_t stream = launch.stream();
    if (work) {
        KVMERGE_LAUNCH(solve, blocks, SOLVE_THREADS, size_t(dim) * (3 * sizeof(double) + sizeof(float)), stream, layers,
                       first->n, work);
    } else if (dim <= 8 * EDGE) {
        KVMERGE_LAUNCH(invert<8>, blocks, threads_of(8), 0, stream, layers, first->n);
    } else if (dim <= 16 * EDGE) {
        KVMERGE_LAUNCH(invert<16>, blocks, threads_of(16), 0, stream, layers, first->n);
    } else {
        KVMERGE_LAUNCH(invert<32>, blocks, threads_of(32), 0, stream, layers, first->n);
    }
}

void fold_direction_all(const FoldDirectionArgs * args, int n) {
    in_groups(
        args, n, MOST_LAYERS, [](const FoldDirectionArgs & a) { return static_cast<const void *>(a.second); },
        [](const FoldDirectionArgs & a, const FoldDirectionArgs & b) {
            return a.n == b.n && a.dim == b.dim && inverts(a) == inverts(b);
        },
        directions_at_once);
}

} // namespace cuda
} // namespace kvmerge
