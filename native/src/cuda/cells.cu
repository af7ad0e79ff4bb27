// Merging cells on the GPU, where they lie: one launch reads all groups of all heads, a second writes them. What a warp
// does for a cell is few instructions: of those there were too many to be at memory's speed.
#include "heads.cuh"

#include <algorithm>

namespace kvmerge {
namespace cuda {

constexpr int WARPS = 4; // of a thread block

// Whether rows hold neighbours in half precision that can be read two at a time.
static bool in_pairs(const CellView & v) {
    return v.type == CELL_F16 && !v.transposed && v.dim % 2 == 0 && v.cell_bytes % 4 == 0 &&
           reinterpret_cast<size_t>(v.data) % 4 == 0;
}

// Calls give(i, element i of a cell) for a lane's share of a cell.
template <bool PAIRS, class Give>
__device__ inline void each_element(const CellView & v, int head, int cell, Give && give) {
    const int lane = threadIdx.x % WARP;
    if constexpr (PAIRS) {
        const uint32_t * const row = reinterpret_cast<const uint32_t *>(address_of(v, head, cell, 0));
        for (int pair = lane; pair < v.dim / 2; pair += WARP) {
            const uint32_t both = row[pair];
            give(2 * pair, __half2float(__ushort_as_half(uint16_t(both))));
            give(2 * pair + 1, __half2float(__ushort_as_half(uint16_t(both >> 16))));
        }
    } else {
        for (int i = lane; i < v.dim; i += WARP) {
            give(i, load_cell(v, head, cell, i));
        }
    }
}

// A head's groups between reading and writing: as its cells will hold them, so that writing only moves bytes. They take
// no more memory than they would in single precision.
__device__ inline CellView row_of(const CellView & v, char * memory, int g) {
    const int size = v.type == CELL_F32 ? 4 : 2;
    const std::ptrdiff_t bytes = v.type >= CELL_Q8_0 ? v.dim / QUANTS * block_bytes(v.type) : v.dim * size;
    return {memory + g * bytes, v.type, 0, v.dim, 1, bytes};
}

__device__ inline char * values_of(const MergeHead & h) {
    char * const keys = reinterpret_cast<char *>(h.scratch);
    return keys + (row_of(h.k, nullptr, 0).cell_bytes * h.n_groups + 3) / 4 * 4;
}

// Writes a mean from shared memory. give(i) is its element i.
template <bool PAIRS, class Value>
__device__ inline void store_row(const CellView & v, Value && value) {
    const int lane = threadIdx.x % WARP;
    if constexpr (PAIRS) {
        for (int pair = lane; pair < v.dim / 2; pair += WARP) {
            const uint32_t low = __half_as_ushort(__float2half_rn(value(2 * pair))),
                           high = __half_as_ushort(__float2half_rn(value(2 * pair + 1)));
            reinterpret_cast<uint32_t *>(v.data)[pair] = low | high << 16;
        }
    } else {
        for (int i0 = 0; i0 < v.dim; i0 += WARP) {
            const int i = i0 + lane;
            store_cells(v, 0, 0, i, i < v.dim ? value(i) : 0.0f, i < v.dim);
        }
    }
}

// Adds w times a key to a mean, turned by `delta` positions. A lane adds to its share of the mean: who reads or adds in
// another order calls __syncwarp() before.
template <bool PAIRS>
__device__ inline void add_key(const MergeHead & h, int cell, int delta, float w, float * key, float * mean) {
    const int lane = threadIdx.x % WARP;
    if (delta == 0 && (PAIRS || !h.hadamard)) {
        each_element<PAIRS>(h.k, h.head, cell, [&](int i, float x) { mean[i] += w * x; });
        return;
    }
    each_element<PAIRS>(h.k, h.head, cell, [&](int i, float x) { key[i] = x; });
    __syncwarp();
    if (!PAIRS && h.hadamard) {
        hadamard(key, h.k.dim, h.hadamard);
    }
    const int turned = delta == 0 ? 0 : h.n_rot;
    for (int i = turned + lane; i < h.k.dim; i += WARP) {
        mean[i] += w * key[i];
    }
    for (int i = lane; i < turned / 2; i += WARP) {
        // The angle is reduced in double: in single precision, thousands of radians have no good digits left.
        const double turns = delta * h.freq[i] * 0.159154943091895336;
        float sine, cosine;
        sincospif(float(2 * (turns - rint(turns))), &sine, &cosine);
        const int x = h.neox ? i : 2 * i, y = h.neox ? i + turned / 2 : 2 * i + 1;
        mean[x] += w * (key[x] * cosine - key[y] * sine);
        mean[y] += w * (key[x] * sine + key[y] * cosine);
    }
}

// A warp takes a group of head blockIdx.y. It has room for two cells in shared memory. PAIRS: all heads' cells are in
// pairs, and not multiplied by Hadamard matrices: the code for other types takes registers.
template <bool PAIRS>
__global__ void __launch_bounds__(WARPS * WARP, 8) merge_groups(const MergeHead * heads, int largest_dim) {
    KVMERGE_DYNAMIC_SHARED(float, shared);
    const MergeHead h = heads[blockIdx.y]; // a copy: what is written does not make it be read again
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = blockIdx.x * WARPS + warp;
    if (g >= h.n_groups) {
        return; // the whole warp does
    }
    const int begin = h.start[g], end = h.start[g + 1];
    float * const key = shared + warp * 2 * largest_dim; // a member's
    float * const mean = key + largest_dim;
    const auto clear = [&] {
        for (int i = lane; i < largest_dim; i += WARP) {
            mean[i] = 0;
        }
        __syncwarp();
    };
    clear();
    for (int m = begin; m < end; m++) {
        add_key<PAIRS>(h, h.member[m], h.delta[m], h.weight[m], key, mean);
        __syncwarp();
    }
    if (!PAIRS && h.hadamard) {
        hadamard(mean, h.k.dim, h.hadamard);
    }
    const float bias = h.bias ? h.bias[g] : 0.0f;
    store_row<PAIRS>(row_of(h.k, reinterpret_cast<char *>(h.scratch), g),
                     [&](int i) { return h.bias ? mean[i] + bias * h.u[i] : mean[i]; });
    __syncwarp();
    clear();
    for (int m = begin; m < end; m++) {
        const float w = h.value_weight[m];
        each_element<PAIRS>(h.v, h.head, h.member[m], [&](int i, float x) { mean[i] += w * x; });
    }
    __syncwarp();
    store_row<PAIRS>(row_of(h.v, values_of(h), g), [&](int i) { return mean[i]; });
}

template <class Word>
__device__ inline void copy_words(char * to, const char * from, std::ptrdiff_t bytes) {
    for (std::ptrdiff_t i = threadIdx.x % WARP; i < bytes / std::ptrdiff_t(sizeof(Word)); i += WARP) {
        reinterpret_cast<Word *>(to)[i] = reinterpret_cast<const Word *>(from)[i];
    }
}

// Writes what merge_groups left of a group.
__device__ inline void write_row(const CellView & v, int head, int cell, const CellView & row) {
    const char * const from = static_cast<const char *>(row.data);
    if (v.transposed) {
        const int size = v.type == CELL_F32 ? 4 : 2;
        for (int i = threadIdx.x % WARP; i < v.dim; i += WARP) {
            char * const to = address_of(v, head, cell, i);
            if (size == 4) {
                *reinterpret_cast<uint32_t *>(to) = reinterpret_cast<const uint32_t *>(from)[i];
            } else {
                *reinterpret_cast<uint16_t *>(to) = reinterpret_cast<const uint16_t *>(from)[i];
            }
        }
        return;
    }
    char * const to = address_of(v, head, cell, 0);
    if ((reinterpret_cast<size_t>(to) | reinterpret_cast<size_t>(from) | size_t(row.cell_bytes)) % 4 == 0) {
        copy_words<uint32_t>(to, from, row.cell_bytes);
    } else {
        copy_words<uint16_t>(to, from, row.cell_bytes);
    }
}

__global__ void __launch_bounds__(WARPS * WARP) write_groups(const MergeHead * heads) {
    const MergeHead & h = heads[blockIdx.y];
    const int g = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (g < h.n_groups) {
        write_row(h.k, h.head, h.dest[g], row_of(h.k, reinterpret_cast<char *>(h.scratch), g));
        write_row(h.v, h.head, h.dest[g], row_of(h.v, values_of(h), g));
    }
}

// Merges heads that lie on one GPU.
static void merge_on_one(const MergeHead * heads, int n_heads, Launch & launch) {
    constexpr int MOST_HEADS = 65535; // of a grid
    for (int first = 0; first < n_heads; first += MOST_HEADS) {
        const int n = std::min(n_heads - first, MOST_HEADS);
        int most = 0, largest_dim = 1;
        bool pairs = true;
        for (const MergeHead * h = heads + first; h < heads + first + n; h++) {
            most = std::max(most, h->n_groups);
            largest_dim = std::max({largest_dim, h->k.dim, h->v.dim});
            pairs &= in_pairs(h->k) && in_pairs(h->v) && !h->hadamard;
        }
        const MergeHead * const there = most > 0 ? launch.uploaded(heads + first, size_t(n)) : nullptr;
        if (there) {
            const dim3 grid(ceil_div(most, WARPS), n);
            const size_t room = WARPS * 2 * size_t(largest_dim) * sizeof(float);
            if (pairs) {
                KVMERGE_LAUNCH(merge_groups<true>, grid, WARPS * WARP, room, launch.stream(), there, largest_dim);
            } else {
                KVMERGE_LAUNCH(merge_groups<false>, grid, WARPS * WARP, room, launch.stream(), there, largest_dim);
            }
            KVMERGE_LAUNCH(write_groups, grid, WARPS * WARP, 0, launch.stream(), there);
        }
    }
}

void merge_cells(const MergeCellsArgs & a) {
    const auto cells = [](const MergeHead & h) { return h.k.data; };
    on_each_gpu(a.heads, a.n_heads, cells,
                [](Launch & launch, const MergeHead * heads, int n) { merge_on_one(heads, n, launch); });
}

} // namespace cuda
} // namespace kvmerge
