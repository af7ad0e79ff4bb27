// As much of CUDA in plain C++ as native/src/cuda needs, to run it without a GPU and under sanitizers. A thread is a
// fiber, the fibers of a thread block take turns, and thread blocks run one after another. Device memory is host
// memory, so AddressSanitizer watches it. The shim shows no races. It ends the program if not all threads reach a
// barrier.
//
// Streams are as late as CUDA allows: what is queued is done when somebody waits or asks whether it is done, and memory
// that is pinned is read no earlier. All is counted, and any call can be made to fail.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

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
struct alignas(16) int4 {
    int x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

namespace shim {
extern dim3 thread_index, block_index, block_size, grid_size;
extern void * dynamic_shared;
// What the host asked for. Bytes are those that cross the bus; allocations are of memory on the GPU and of pinned
// memory. Waits are calls that wait for a stream, whether it is done or not: large copies from memory that is not
// pinned among them.
struct Counts {
    int launches, copies, fills, waits, allocations;
    size_t bytes;
};
__attribute__((visibility("default"))) Counts & counts();
// Makes every call of the runtime fail from now on, with this error; 0: none.
__attribute__((visibility("default"))) int & failing();
__attribute__((visibility("default"))) int & gpus();
// Whether a GPU never has done anything yet when somebody asks.
__attribute__((visibility("default"))) bool & slow();
// Memory that is on a second GPU, by its first address and how many bytes it has; all other memory is on the first.
__attribute__((visibility("default"))) std::map<const char *, int> & second_gpu();
int gpu_of(const void * memory);
bool & asked_too_early(); // which the next cudaGetLastError says
bool is_pinned(const void * memory);
void queue(std::function<void()> work);
bool is_idle();
void run_queue();
void launch(dim3 grid, dim3 block, size_t shared, const std::function<void()> & kernel);
template <class Kernel, class... Args>
void queue_launch(dim3 grid, dim3 block, size_t shared, Kernel kernel, const Args &... args) {
    counts().launches++;
    queue([=, all = std::make_tuple(args...)] { launch(grid, block, shared, [&] { std::apply(kernel, all); }); });
}
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
    ((void)(stream), shim::queue_launch(grid, block, shared, kernel, __VA_ARGS__))
#define KVMERGE_DYNAMIC_SHARED(type, name) type * const name = static_cast<type *>(shim::dynamic_shared)
#define KVMERGE_NOINLINE inline

inline void __syncthreads() {
    shim::block_barrier();
}
inline void __syncwarp() {
    shim::warp_barrier();
}
template <class T>
T __shfl_sync(unsigned, T x, int lane) {
    uint64_t bits = 0;
    std::memcpy(&bits, &x, sizeof x);
    const uint64_t got = shim::exchange(bits)[unsigned(lane) % 32];
    std::memcpy(&x, &got, sizeof x);
    return x;
}
template <class T>
T __shfl_xor_sync(unsigned all, T x, int mask) {
    return __shfl_sync(all, x, int(shim::thread_index.x % 32) ^ mask);
}
inline unsigned __ballot_sync(unsigned, bool vote) {
    const uint64_t * const votes = shim::exchange(vote);
    unsigned all = 0;
    for (int i = 0; i < 32; i++) {
        all |= unsigned(votes[i] & 1) << i;
    }
    return all;
}
inline float __fmul_rn(float x, float y) {
    return x * y;
}
inline float __fdividef(float x, float y) {
    return x / y;
}
inline float __fadd_rn(float x, float y) {
    return x + y;
}
inline int __ffs(int x) {
    return __builtin_ffs(x);
}
inline int __popc(unsigned x) {
    return __builtin_popcount(x);
}
inline int atomicAdd(int * to, int x) {
    return std::exchange(*to, *to + x);
}
inline int atomicMin(int * to, int x) {
    return std::exchange(*to, std::min(*to, x));
}
inline int atomicMax(int * to, int x) {
    return std::exchange(*to, std::max(*to, x));
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
enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInsufficientDriver = 35,
    cudaErrorDevicesUnavailable = 46,
    cudaErrorInvalidDeviceFunction = 98,
    cudaErrorNoKernelImageForDevice = 209,
    cudaErrorECCUncorrectable = 214,
    cudaErrorJitCompilerNotFound = 221,
    cudaErrorUnsupportedPtxVersion = 222,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchTimeout = 702,
    cudaErrorHardwareStackError = 714,
    cudaErrorLaunchFailure = 719
};
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
enum cudaMemoryType { cudaMemoryTypeHost = 1, cudaMemoryTypeDevice = 2, cudaMemoryTypeManaged = 3 };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
struct cudaPointerAttributes {
    cudaMemoryType type;
    int device;
};
using cudaStream_t = void *;
using cudaMemPool_t = void *;
constexpr unsigned cudaStreamNonBlocking = 1, cudaHostAllocPortable = 1;

inline cudaError_t shim_status() {
    return cudaError_t(shim::failing());
}
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t * s, unsigned) {
    *s = s;
    return cudaSuccess;
}
inline cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t * pool, int) {
    *pool = nullptr;
    return cudaSuccess;
}
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void *) {
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
    shim::counts().waits++;
    shim::run_queue();
    return shim_status();
}
inline cudaError_t cudaStreamQuery(cudaStream_t) {
    if (shim::slow() && !shim::is_idle()) {
        shim::asked_too_early() = true;
        return cudaErrorNotReady;
    }
    shim::run_queue();
    return shim_status();
}
inline cudaError_t cudaGetLastError() { // memory that lacked is forgotten when somebody was told
    if (std::exchange(shim::asked_too_early(), false)) {
        return cudaErrorNotReady;
    }
    return shim_status() == cudaErrorMemoryAllocation ? cudaSuccess : shim_status();
}
inline const char * cudaGetErrorString(cudaError_t) {
    return "an error of the shim";
}
inline cudaError_t cudaGetDeviceCount(int * n) {
    *n = shim::gpus();
    return shim_status();
}
cudaError_t cudaGetDevice(int * d);
cudaError_t cudaSetDevice(int d);
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes * a, const void * memory) {
    *a = {cudaMemoryTypeDevice, shim::gpu_of(memory)};
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void ** p, size_t n, unsigned);
cudaError_t cudaFreeHost(void * p);                             // waits
cudaError_t cudaMallocAsync(void ** p, size_t n, cudaStream_t); // on the current GPU
cudaError_t cudaFreeAsync(void * p, cudaStream_t);
inline cudaError_t cudaMemsetAsync(void * p, int x, size_t n, cudaStream_t) {
    shim::counts().fills++;
    shim::queue([=] { std::memset(p, x, n); });
    return shim_status();
}
inline cudaError_t cudaMemcpyAsync(void * to, const void * from, size_t n, cudaMemcpyKind kind, cudaStream_t) {
    shim::counts().copies++;
    shim::counts().bytes += n;
    if (kind == cudaMemcpyDeviceToHost) {
        shim::queue([=] { std::memcpy(to, from, n); });
    } else if (shim::is_pinned(from)) {
        shim::queue([=] { std::memcpy(to, from, n); });
    } else {                               // the host may change `from` right away
        constexpr size_t LARGE = 64 << 10; // what the driver has no buffer for, it waits for
        shim::counts().waits += n > LARGE;
        const char * const bytes = static_cast<const char *>(from);
        shim::queue([to, copy = std::vector<char>(bytes, bytes + n)] { std::memcpy(to, copy.data(), copy.size()); });
    }
    return shim_status();
}
inline cudaError_t cudaMallocManaged(void ** p, size_t n) {
    *p = std::malloc(n);
    return *p ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void * p) {
    shim::run_queue();
    std::free(p);
    return cudaSuccess;
}

// What only bench_cuda.cpp calls, which is compiled against the shim and never run on it.
cudaError_t cudaMalloc(void ** p, size_t n);
cudaError_t cudaMemset(void * p, int x, size_t n);
cudaError_t cudaMemcpy(void * to, const void * from, size_t n, cudaMemcpyKind kind);
cudaError_t cudaMemcpyAsync(void * to, const void * from, size_t n, cudaMemcpyKind kind);
cudaError_t cudaDeviceSynchronize();
