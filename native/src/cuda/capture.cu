// The steps of capturing queries on the GPU: one launch for all layers.
#include "common.cuh"

#include <algorithm>

namespace kvmerge {
namespace cuda {

constexpr int LAYERS = 64;        // of a launch: their pointers are the kernel's parameters, of which 4 KB fit
constexpr int COPY_THREADS = 256; // and one row of a mask is a thread block's

struct CollectPointers {
    const float * from[LAYERS];
    float * to[LAYERS];
    float * coming[LAYERS];
};

// Thread blocks (x, y): the x-th part of layer y's queries; from y = n_layers on, the (y - n_layers)th row of the mask.
__global__ void __launch_bounds__(COPY_THREADS) collect(CollectPointers p, CollectQueriesArgs a) {
    __shared__ int shared[COPY_THREADS];
    if (int(blockIdx.y) < a.n_layers) {
        const float * const from = p.from[blockIdx.y];
        float * const to = p.to[blockIdx.y];
        float * const coming = p.coming[blockIdx.y];
        const std::ptrdiff_t first = std::ptrdiff_t(blockIdx.x) * COPY_THREADS + threadIdx.x,
                             step = std::ptrdiff_t(gridDim.x) * COPY_THREADS;
        for (std::ptrdiff_t i = first; i < a.n_moved; i += step) {
            to[i] = from[i];
        }
        for (std::ptrdiff_t r = first; r < a.n_rows; r += step) { // after its first element has gone, by this thread
            coming[r * a.row] = __uint_as_float(NOT_COME);
        }
        return;
    }
    if (blockIdx.x > 0) {
        return;
    }
    const int r = blockIdx.y - a.n_layers;
    int visible = 0;
    for (int c = threadIdx.x; c < a.n_cells; c += COPY_THREADS) {
        bool sees = c < a.n_kv;
        if (sees && a.mask) {
            const std::ptrdiff_t at = r * a.mask_stride + c;
            sees = a.mask_floats ? static_cast<const float *>(a.mask)[at] > -INFINITY
                                 : static_cast<const uint16_t *>(a.mask)[at] != HIDDEN;
        }
        a.masks[std::ptrdiff_t(r) * a.n_cells + c] = sees ? 0 : HIDDEN;
        visible += sees;
        if (a.newest && r == a.n_rows - 1) {
            a.newest[c] = sees;
        }
    }
    shared[threadIdx.x] = visible;
    __syncthreads();
    for (int n = COPY_THREADS / 2; n > 0; n /= 2) {
        if (int(threadIdx.x) < n) {
            shared[threadIdx.x] += shared[threadIdx.x + n];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        a.inv_log_visible[r] = shared[0] > 1 ? float(1 / log(double(shared[0]))) : 0.0f;
    }
}

void collect_queries(const CollectQueriesArgs & given) {
    for (int first = 0; first < given.n_layers || first == 0; first += LAYERS) {
        CollectQueriesArgs a = given;
        CollectPointers p = {};
        a.n_layers = std::min(LAYERS, given.n_layers - first);
        for (int i = 0; i < a.n_layers; i++) {
            p.from[i] = a.n_moved > 0 ? given.from[first + i] : nullptr;
            p.to[i] = a.n_moved > 0 ? given.to[first + i] : nullptr;
            p.coming[i] = a.n_rows > 0 ? given.coming[first + i] : nullptr;
        }
        a.masks = first == 0 ? a.masks : nullptr;
        const int mask_rows = a.masks ? a.n_rows : 0, parts = std::clamp(ceil_div(a.n_moved, 4 * COPY_THREADS), 1, 32);
        const Launch launch(a.masks        ? static_cast<const void *>(a.masks)
                            : a.n_rows > 0 ? given.coming[0]
                                           : given.to[0]);
        if (launch.fine() && a.n_layers + mask_rows > 0) {
            KVMERGE_LAUNCH(collect, dim3(parts, a.n_layers + mask_rows), COPY_THREADS, 0, launch.stream(), p, a);
        }
    }
}

struct CheckPointers {
    float * queries[LAYERS];
    int32_t * missing[LAYERS];
};

__global__ void __launch_bounds__(COPY_THREADS) check_come(CheckPointers p, CheckQueriesArgs a) {
    float * const queries = p.queries[blockIdx.x];
    int first = -1;
    for (int r = 0; r < a.n_rows; r++) {
        float * const row = queries + r * a.row;
        const bool come = __float_as_uint(row[0]) != NOT_COME;
        __syncthreads(); // all threads have read it
        if (!come) {
            first = first < 0 ? r : first;
            for (std::ptrdiff_t i = threadIdx.x; i < a.row; i += COPY_THREADS) {
                row[i] = 0;
            }
        }
    }
    int32_t & missing = *p.missing[blockIdx.x];
    if (threadIdx.x == 0 && first >= 0 && missing < 0) {
        missing = a.first_token + first;
    }
}

void check_queries(const CheckQueriesArgs & a) {
    for (int first = 0; first < a.n_layers; first += LAYERS) {
        CheckPointers p = {};
        const int n = std::min(LAYERS, a.n_layers - first);
        std::copy(a.queries + first, a.queries + first + n, p.queries);
        std::copy(a.missing + first, a.missing + first + n, p.missing);
        const Launch launch(a.queries[first]);
        if (launch.fine()) {
            KVMERGE_LAUNCH(check_come, n, COPY_THREADS, 0, launch.stream(), p, a);
        }
    }
}

} // namespace cuda
} // namespace kvmerge
