// Query moments, and the direction to fold a bias along, on the GPU.
#include "common.cuh"

namespace kvmerge {
namespace cuda {

constexpr int SIDE = 16;

// A thread block makes a SIDE by SIDE tile of a KV head's second moment, SIDE queries at a time.
__global__ void __launch_bounds__(SIDE * SIDE) moments(QueryMomentsArgs a) {
    __shared__ float qi[SIDE][SIDE + 1], qj[SIDE][SIDE + 1];
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const int i = blockIdx.y * SIDE + y, j = blockIdx.x * SIDE + x, kv_head = blockIdx.z;
    const int rows = a.heads_per_kv * a.n_rows;
    float product = 0, sum = 0;
    for (int r0 = 0; r0 < rows; r0 += SIDE) {
        const int r = r0 + y; // loading: a row of threads takes a query
        const float * q = a.q + std::ptrdiff_t(kv_head * a.heads_per_kv + min(r, rows - 1) / a.n_rows) * a.head_stride +
                          std::ptrdiff_t(min(r, rows - 1) % a.n_rows) * a.row_stride;
        const int di = blockIdx.y * SIDE + x, dj = blockIdx.x * SIDE + x;
        qi[y][x] = r < rows && di < a.dim ? q[di] : 0.0f;
        qj[y][x] = r < rows && dj < a.dim ? q[dj] : 0.0f;
        __syncthreads();
        for (int k = 0; k < SIDE; k++) {
            product += qi[k][y] * qj[k][x];
            sum += qi[k][y];
        }
        __syncthreads();
    }
    if (i < a.dim && j < a.dim) {
        float & second = a.second[(std::ptrdiff_t(kv_head) * a.dim + i) * a.dim + j];
        second = second * a.keep + product;
        if (j == 0) {
            float & total = a.sum[std::ptrdiff_t(kv_head) * a.dim + i];
            total = total * a.keep + sum;
        }
    }
}

void query_moments(const QueryMomentsArgs & a) {
    const Launch launch(a.q);
    if (launch.fine()) {
        const int n = ceil_div(a.dim, SIDE);
        KVMERGE_LAUNCH(moments, dim3(n, n, a.n_kv_heads), SIDE * SIDE, 0, launch.stream(), a);
    }
}

constexpr int SOLVE_THREADS = 128;

__device__ inline double block_sum(double x, double * shared) {
    shared[threadIdx.x] = x;
    __syncthreads();
    for (int n = SOLVE_THREADS / 2; n > 0; n /= 2) {
        if (int(threadIdx.x) < n) {
            shared[threadIdx.x] += shared[threadIdx.x + n];
        }
        __syncthreads();
    }
    const double sum = shared[0];
    __syncthreads();
    return sum;
}

// A thread block solves one head's system by Cholesky on the upper triangle, A = U'U, in double precision.
// work: [n][dim * dim + dim].
__global__ void __launch_bounds__(SOLVE_THREADS) solve(FoldDirectionArgs a, double * work) {
    __shared__ double shared[SOLVE_THREADS];
    const int d = a.dim, t = threadIdx.x;
    const float * const second = a.second + std::ptrdiff_t(blockIdx.x) * d * d;
    const float * const sum = a.sum + std::ptrdiff_t(blockIdx.x) * d;
    float * const u = a.u + std::ptrdiff_t(blockIdx.x) * d;
    double * const upper = work + std::ptrdiff_t(blockIdx.x) * (std::ptrdiff_t(d) * d + d);
    double * const x = upper + std::ptrdiff_t(d) * d;
    double diagonal = 0;
    for (int i = t; i < d; i += SOLVE_THREADS) {
        diagonal += second[std::ptrdiff_t(i) * d + i] * a.inverse_weight;
    }
    const double trace = block_sum(diagonal, shared);
    if (!(trace > 0)) {
        for (int i = t; i < d; i += SOLVE_THREADS) {
            u[i] = 0;
        }
        return;
    }
    for (int i = t; i < d * d; i += SOLVE_THREADS) {
        upper[i] = second[i] * a.inverse_weight + (i / d == i % d ? a.ridge * trace / d : 0.0);
    }
    for (int i = t; i < d; i += SOLVE_THREADS) {
        x[i] = sum[i] * a.inverse_weight;
    }
    __syncthreads();
    for (int i = 0; i < d; i++) {
        double * const row = upper + std::ptrdiff_t(i) * d;
        const double inverse = 1 / sqrt(row[i]);
        __syncthreads(); // every thread has read the diagonal
        for (int j = i + t; j < d; j += SOLVE_THREADS) {
            row[j] *= inverse;
        }
        if (t == 0) {
            x[i] *= inverse; // divides by the new diagonal
        }
        __syncthreads();
        for (int r = i + 1 + t; r < d; r += SOLVE_THREADS) {
            const double f = row[r];
            double * const below = upper + std::ptrdiff_t(r) * d;
            for (int j = r; j < d; j++) {
                below[j] -= f * row[j];
            }
            x[r] -= f * x[i];
        }
        __syncthreads();
    }
    for (int i = d - 1; i >= 0; i--) {
        const double * const row = upper + std::ptrdiff_t(i) * d;
        double part = 0;
        for (int j = i + 1 + t; j < d; j += SOLVE_THREADS) {
            part += row[j] * x[j];
        }
        const double known = block_sum(part, shared);
        if (t == 0) {
            x[i] = (x[i] - known) / row[i];
            u[i] = float(x[i]);
        }
        __syncthreads();
    }
}

void fold_direction(const FoldDirectionArgs & a) {
    const Launch launch(a.second);
    if (launch.fine()) {
        const Scratch<double> work(launch, size_t(a.n) * (size_t(a.dim) * a.dim + a.dim));
        KVMERGE_LAUNCH(solve, a.n, SOLVE_THREADS, 0, launch.stream(), a, work.data());
    }
}

} // namespace cuda
} // namespace kvmerge
