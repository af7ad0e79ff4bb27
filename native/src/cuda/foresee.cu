// Foreseen attention on the GPU: what a calibration takes from new cells, and what it makes of attention so far.
#include "heads.cuh"

#include <algorithm>

namespace kvmerge {
namespace cuda {

constexpr int PROJECT_WARPS = 4, MOST_TILES = 1024;

// A warp takes a cell, and has room for its key in shared memory.
__global__ void __launch_bounds__(PROJECT_WARPS * WARP) project(const ProjectCellsArgs * heads, int largest_dim) {
    KVMERGE_DYNAMIC_SHARED(float, shared);
    const ProjectCellsArgs & a = heads[blockIdx.x];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, dim = a.keys.dim;
    float * const key = shared + warp * largest_dim;
    for (int c = blockIdx.y * PROJECT_WARPS + warp; c < a.n; c += gridDim.y * PROJECT_WARPS) {
        for (int i = lane; i < dim; i += WARP) {
            key[i] = load_cell(a.keys, a.head, a.cells[c], i);
        }
        __syncwarp();
        if (a.hadamard) {
            hadamard(key, dim, a.hadamard);
        }
        float product = 0, square = 0;
        for (int i = a.n_rot + lane; i < dim; i += WARP) {
            product += a.weight[i] * key[i];
        }
        for (int i = lane; i < a.n_rot / 2; i += WARP) { // rotated back
            const double turns = a.position[c] * a.freq[i] * 0.159154943091895336;
            float sine, cosine;
            sincospif(float(2 * (turns - rint(turns))), &sine, &cosine);
            const int x = a.neox ? i : 2 * i, y = a.neox ? i + a.n_rot / 2 : 2 * i + 1;
            product += a.weight[x] * (key[x] * cosine + key[y] * sine);
            product += a.weight[y] * (key[y] * cosine - key[x] * sine);
        }
        for (int i = lane; i < a.values.dim; i += WARP) {
            const float v = load_cell(a.values, a.head, a.cells[c], i);
            square += v * v;
        }
        product = warp_sum(product);
        square = warp_sum(square);
        if (lane == 0) {
            a.product[c] = product;
            a.length[c] = sqrtf(square);
        }
        __syncwarp();
    }
}

void project_heads(const ProjectHeadsArgs & a) {
    const auto cells = [](const ProjectCellsArgs & h) { return h.keys.data; };
    on_each_gpu(a.heads, a.n_heads, cells, [](Launch & launch, const ProjectCellsArgs * heads, int n) {
        int most = 1, largest_dim = 1;
        for (int i = 0; i < n; i++) {
            most = std::max(most, heads[i].n);
            largest_dim = std::max(largest_dim, heads[i].keys.dim);
        }
        if (const ProjectCellsArgs * const there = launch.uploaded(heads, size_t(n))) {
            KVMERGE_LAUNCH(project, dim3(n, std::min(MOST_TILES, ceil_div(most, PROJECT_WARPS))), PROJECT_WARPS * WARP,
                           PROJECT_WARPS * size_t(largest_dim) * sizeof(float), launch.stream(), there, largest_dim);
        }
    });
}

constexpr int FORESEE_THREADS = 256;

__global__ void __launch_bounds__(FORESEE_THREADS) foresee(const ExpectedAttentionArgs * heads) {
    const ExpectedAttentionArgs & a = heads[blockIdx.x];
    const auto log_rate = [&](int i) { return logf(fmaxf(float(a.rate[i] + a.least), 1.2e-38f)); };
    for (int i = blockIdx.y * FORESEE_THREADS + threadIdx.x; i < a.n; i += gridDim.y * FORESEE_THREADS) {
        const float sum = a.prior[i] + a.weight[0] * log_rate(i) + a.weight[1] * log_rate(max(i - 1, 0)) +
                          a.weight[2] * log_rate(min(i + 1, a.n - 1)) +
                          a.weight[3] * logf(float(a.now - a.position[i]));
        a.expected[i] = expf(sum > 88.0f ? 88.0f : sum); // NaN stays
    }
}

void foresee_heads(const ForeseeHeadsArgs & a) {
    const auto rates = [](const ExpectedAttentionArgs & h) { return h.rate; };
    on_each_gpu(a.heads, a.n_heads, rates, [](Launch & launch, const ExpectedAttentionArgs * heads, int n) {
        int most = 1;
        for (int i = 0; i < n; i++) {
            most = std::max(most, heads[i].n);
        }
        if (const ExpectedAttentionArgs * const there = launch.uploaded(heads, size_t(n))) {
            KVMERGE_LAUNCH(foresee, dim3(n, std::min(MOST_TILES, ceil_div(most, FORESEE_THREADS))), FORESEE_THREADS, 0,
                           launch.stream(), there);
        }
    });
}

} // namespace cuda
} // namespace kvmerge
