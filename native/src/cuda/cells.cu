// Merging cells on the GPU, where they lie: one launch reads all groups of all heads, a second writes them.
#include "heads.cuh"

#include <algorithm>
#include <cstring>
#include <vector>

namespace kvmerge {
namespace cuda {

constexpr int WARPS = 4; // of a thread block

// The head that a group belongs to, by bisection. first_group: [n_heads + 1], how many groups the heads before have.
__device__ inline int head_of(const int * first_group, int n_heads, int group) {
    int low = 0, high = n_heads - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (first_group[middle] <= group) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    return low;
}

// A warp takes a group. It has room for two keys in shared memory.
__global__ void __launch_bounds__(WARPS * WARP)
    merge_groups(const MergeHead * heads, const int * first_group, int n_heads, int n_groups, int largest_dim) {
    KVMERGE_DYNAMIC_SHARED(float, shared);
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, group = blockIdx.x * WARPS + warp;
    if (group >= n_groups) {
        return; // the whole warp does
    }
    const int index = head_of(first_group, n_heads, group);
    const MergeHead & h = heads[index];
    const int g = group - first_group[index], begin = h.start[g], end = h.start[g + 1], dim_k = h.k.dim,
              dim_v = h.v.dim;
    float * const key = shared + warp * 2 * largest_dim; // a member's
    float * const mean = key + largest_dim;
    for (int i = lane; i < dim_k; i += WARP) {
        mean[i] = 0;
    }
    for (int m = begin; m < end; m++) {
        const float w = h.weight[m];
        for (int i = lane; i < dim_k; i += WARP) {
            key[i] = load_cell(h.k, h.head, h.member[m], i);
        }
        __syncwarp();
        if (h.hadamard) {
            hadamard(key, dim_k, h.hadamard);
        }
        const int plain = h.delta[m] == 0 ? 0 : h.n_rot;
        for (int i = plain + lane; i < dim_k; i += WARP) {
            mean[i] += w * key[i];
        }
        for (int i = lane; i < plain / 2; i += WARP) {
            // The angle is reduced in double: in single precision, thousands of radians have no good digits left.
            const double turns = h.delta[m] * h.freq[i] * 0.159154943091895336;
            float sine, cosine;
            sincospif(float(2 * (turns - rint(turns))), &sine, &cosine);
            const int x = h.neox ? i : 2 * i, y = h.neox ? i + plain / 2 : 2 * i + 1;
            mean[x] += w * (key[x] * cosine - key[y] * sine);
            mean[y] += w * (key[x] * sine + key[y] * cosine);
        }
        __syncwarp();
    }
    if (h.hadamard) {
        hadamard(mean, dim_k, h.hadamard);
    }
    float * const out = h.scratch + std::ptrdiff_t(g) * (dim_k + dim_v);
    for (int i = lane; i < dim_k; i += WARP) {
        out[i] = mean[i] + (h.bias ? h.bias[g] * h.u[i] : 0.0f);
    }
    for (int i = lane; i < dim_v; i += WARP) {
        float sum = 0;
        for (int m = begin; m < end; m++) {
            sum += h.value_weight[m] * load_cell(h.v, h.head, h.member[m], i);
        }
        out[dim_k + i] = sum;
    }
}

__global__ void __launch_bounds__(WARPS * WARP)
    write_groups(const MergeHead * heads, const int * first_group, int n_heads, int n_groups) {
    const int lane = threadIdx.x % WARP, group = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (group >= n_groups) {
        return;
    }
    const int index = head_of(first_group, n_heads, group);
    const MergeHead & h = heads[index];
    const int g = group - first_group[index], dim_k = h.k.dim, dim_v = h.v.dim;
    const float * const in = h.scratch + std::ptrdiff_t(g) * (dim_k + dim_v);
    for (int i0 = 0; i0 < dim_k; i0 += WARP) {
        const int i = i0 + lane;
        store_cells(h.k, h.head, h.dest[g], i, i < dim_k ? in[i] : 0.0f, i < dim_k);
    }
    for (int i0 = 0; i0 < dim_v; i0 += WARP) {
        const int i = i0 + lane;
        store_cells(h.v, h.head, h.dest[g], i, i < dim_v ? in[dim_k + i] : 0.0f, i < dim_v);
    }
}

// Merges heads that lie on one GPU.
static void merge_on_one(const MergeHead * heads, int n_heads, Launch & launch) {
    std::vector<int> first_group(1, 0);
    int largest_dim = 1;
    for (int i = 0; i < n_heads; i++) {
        first_group.push_back(first_group.back() + heads[i].n_groups);
        largest_dim = std::max(largest_dim, heads[i].k.dim);
    }
    const int n_groups = first_group.back();
    if (n_groups == 0) {
        return;
    }
    // Both in one copy.
    const size_t head_bytes = size_t(n_heads) * sizeof(MergeHead),
                 all_bytes = head_bytes + first_group.size() * sizeof(int);
    std::vector<char> all(all_bytes);
    std::memcpy(all.data(), heads, head_bytes);
    std::memcpy(all.data() + head_bytes, first_group.data(), all_bytes - head_bytes);
    const char * const there = launch.uploaded(all.data(), all_bytes);
    if (!there) {
        return;
    }
    const MergeHead * const heads_there = reinterpret_cast<const MergeHead *>(there);
    const int * const first_there = reinterpret_cast<const int *>(there + head_bytes);
    const int blocks = ceil_div(n_groups, WARPS);
    KVMERGE_LAUNCH(merge_groups, blocks, WARPS * WARP, WARPS * 2 * size_t(largest_dim) * sizeof(float), launch.stream(),
                   heads_there, first_there, n_heads, n_groups, largest_dim);
    KVMERGE_LAUNCH(write_groups, blocks, WARPS * WARP, 0, launch.stream(), heads_there, first_there, n_heads, n_groups);
}

void merge_cells(const MergeCellsArgs & a) {
    const auto cells = [](const MergeHead & h) { return h.k.data; };
    on_each_gpu(a.heads, a.n_heads, cells,
                [](Launch & launch, const MergeHead * heads, int n) { merge_on_one(heads, n, launch); });
}

} // namespace cuda
} // namespace kvmerge
