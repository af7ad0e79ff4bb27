// What CUDA C++ has no plain function for: products on tensor cores whose operands lie in known lanes, the GPU's own
// power of two, and prefetching.
#pragma once

#include <cstdint>
#include <cuda_runtime.h>

#ifdef KVMERGE_CUDA_SHIM
#    include <tensor_cores.hpp>
#endif

namespace kvmerge {
namespace cuda {

#ifdef KVMERGE_CUDA_SHIM
using shim::ex2;
using shim::mma;
using shim::prefetch_l2;
#else
// 2^x, to two units of the last place; 0 for what would be subnormal.
__device__ inline float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Has what lies there come into the second cache.
__device__ inline void prefetch_l2(const void * at) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
}

// sum += a b of a warp, where a is 16 by 16 and b is 16 by 8, two half-precision numbers in a register. Of lane 4 g +
// p, sum is (g, 2p), (g, 2p+1), (g+8, 2p), (g+8, 2p+1). a is (g, 2p ..), (g+8, 2p ..), (g, 2p+8 ..), (g+8, 2p+8 ..),
// and b is (2p .., g), (2p+8 .., g).
__device__ inline void mma(float (&sum)[4], const uint4 & a, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b0), "r"(b1));
}
#endif

} // namespace cuda
} // namespace kvmerge
