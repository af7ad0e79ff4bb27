// As much of CUDA in plain C++ as native/src/cuda needs, to run it without a GPU and under sanitizers. A thread is a
// fiber, the fibers of a thread block take turns, and thread blocks run one after another. Device memory is host
// memory, so AddressSanitizer watches it. The shim shows no races. It ends the program if not all threads reach a
// barrier.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>

#define KVMERGE_CUDA_SHIM
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __shared__ static

struct dim3 {
    unsigned x, y, z;
    dim3(std::ptrdiff_t x = 1, std::ptrdiff_t y = 1, std::ptrdiff_t z = 1)
        : x(unsigned(x)), y(unsigned(y)), z(unsigned(z)) {}
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace shim {
extern dim3 thread_index, block_index, block_size, grid_size;
extern void * dynamic_shared;
void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()> & kernel);
void block_barrier();
void warp_barrier();
// All lanes give a value and see all lanes' values.
uint64_t * exchange(uint64_t value);
} // namespace shim

#define threadIdx shim::thread_index
#define blockIdx shim::block_index
#define blockDim shim::block_size
#define gridDim shim::grid_size
#define KVMERGE_LAUNCH(kernel, grid, block, shared, stream, ...) \
    ((void)(stream), shim::launch(grid, block, shared, [&] { kernel(__VA_ARGS__); }))
#define KVMERGE_DYNAMIC_SHARED(type, name) type * const name = static_cast<type *>(shim::dynamic_shared)

inline void __syncthreads() {
    shim::block_barrier();
}
inline void __syncwarp() {
    shim::warp_barrier();
}
template <class T>
T __shfl_xor_sync(unsigned, T x, int mask) {
    uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof x);
    const uint64_t got = shim::exchange(bits)[(shim::thread_index.x % 32) ^ unsigned(mask)];
    std::memcpy(&x, &got, sizeof x);
    return x;
}
inline unsigned __ballot_sync(unsigned, bool vote) {
    const uint64_t * const votes = shim::exchange(vote);
    unsigned all = 0;
    for (int i = 0; i < 32; i++) {
        all |= unsigned(votes[i] & 1) << i;
    }
    return all;
}
inline int __clz(int x) {
    return x ? __builtin_clz(unsigned(x)) : 32;
}
inline float __logf(float x) {
    return std::log(x);
}
inline void sincospif(float x, float * s, float * c) {
    *s = float(std::sin(3.14159265358979323846 * double(x)));
    *c = float(std::cos(3.14159265358979323846 * double(x)));
}
inline float __uint_as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
inline uint32_t __float_as_uint(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}
using std::max;
using std::min;

// ---- the runtime ----------------------------------------------------------------------------------------------------
enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaMemoryType { cudaMemoryTypeHost = 1, cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3 };
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
};
using cudaStream_t = void *;
constexpr unsigned cudaStreamNonBlocking = 1;

inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t * s, unsigned) {
    *s = s;
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    return cudaSuccess;
}
inline cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
inline const char * cudaGetErrorString(cudaError_t) {
    return "an error of the shim";
}
inline cudaError_t cudaGetDeviceCount(int * n) {
    *n = 1;
    return cudaSuccess;
}
inline cudaError_t cudaGetDevice(int * d) {
    *d = 0;
    return cudaSuccess;
}
inline cudaError_t cudaSetDevice(int) {
    return cudaSuccess;
}
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes * a, const void *) {
    *a = {cudaMemoryTypeDevice, 0};
    return cudaSuccess;
}
inline cudaError_t cudaMallocAsync(void ** p, size_t n, cudaStream_t) {
    *p = std::malloc(n);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFreeAsync(void * p, cudaStream_t) {
    std::free(p);
    return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void * p, int x, size_t n, cudaStream_t) {
    std::memset(p, x, n);
    return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void * to, const void * from, size_t n, cudaMemcpyKind, cudaStream_t) {
    std::memcpy(to, from, n);
    return cudaSuccess;
}
inline cudaError_t cudaMallocManaged(void ** p, size_t n) {
    return cudaMallocAsync(p, n, nullptr);
}
inline cudaError_t cudaFree(void * p) {
    return cudaFreeAsync(p, nullptr);
}
