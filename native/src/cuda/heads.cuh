// What the kernels over many heads share: a launch for each GPU that the heads lie on, and keys as they were stored.
#pragma once

#include "common.cuh"

namespace kvmerge {
namespace cuda {

// Transforms a key x in shared memory. All lanes of one warp call it.
__device__ inline void hadamard(float * x, int dim, int size) {
    const float norm = 1 / sqrtf(float(size));
    for (int half = 1; half < size; half *= 2) {
        for (int pair = threadIdx.x % WARP; pair < dim / 2; pair += WARP) {
            const int at = pair / half * 2 * half + pair % half;
            const float a = x[at], b = x[at + half];
            x[at] = a + b;
            x[at + half] = a - b;
        }
        __syncwarp();
    }
    for (int i = threadIdx.x % WARP; i < dim; i += WARP) {
        x[i] *= norm;
    }
    __syncwarp();
}

// Calls body(launch, heads, n) for each run of heads that lie on one GPU: the layers on one GPU follow each other.
// data_of tells by what memory a head is known.
template <class Head, class DataOf, class Body>
void on_each_gpu(const Head * heads, int n_heads, DataOf && data_of, Body && body) {
    for (int i = 0; i < n_heads;) {
        Launch launch(data_of(heads[i]));
        if (!launch.fine()) {
            return;
        }
        int end = i + 1;
        for (cudaPointerAttributes where; end < n_heads; end++) {
            if (data_of(heads[end]) != data_of(heads[end - 1]) &&
                (cudaPointerGetAttributes(&where, data_of(heads[end])) != cudaSuccess ||
                 where.device != launch.gpu())) {
                break;
            }
        }
        body(launch, heads + i, end - i);
        i = end;
    }
}

} // namespace cuda
} // namespace kvmerge
