// What the CUDA kernels share. The same sources also compile as plain C++ against native/tests/cuda_shim, which runs
// them on fibers.
#pragma once

#include "kernels/kernels.hpp"
#include "quantised.cuh"

#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mutex>

#ifndef KVMERGE_CUDA_SHIM
#    define KVMERGE_LAUNCH(kernel, grid, block, shared, stream, ...) \
        kernel<<<grid, block, shared, stream>>>(__VA_ARGS__)
#    define KVMERGE_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#    define KVMERGE_NOINLINE __noinline__
#endif

namespace kvmerge {
namespace cuda {

constexpr int MOST_GPUS = 64; // that a process may see
constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;

__device__ inline float warp_sum(float x) {
    for (int o = WARP / 2; o > 0; o /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, o);
    }
    return x;
}

__device__ inline float warp_max(float x) {
    for (int o = WARP / 2; o > 0; o /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, o));
    }
    return x;
}

__device__ inline float sharpened(float p, int half_powers) {
    return half_powers == 2 ? p : half_powers == 3 ? p * sqrtf(p) : p * p;
}

__device__ inline float clamped_entropy(float h, float inverse) {
    const float normalised = h * inverse;
    return normalised < 0 ? 0 : normalised > 1 ? 1 : normalised; // lets NaN through
}

// Where element i of a cell of a head lies; of a quantised type, where its block does.
__device__ inline char * address_of(const CellView & v, int head, int cell, int i) {
    char * const data = static_cast<char *>(v.data);
    const std::ptrdiff_t element = std::ptrdiff_t(head) * v.dim + i;
    if (v.type >= CELL_Q8_0) {
        return data + cell * v.cell_bytes + element / QUANTS * block_bytes(v.type);
    }
    const int size = v.type == CELL_F32 ? 4 : 2;
    return v.transposed ? data + (element * v.n_cells + cell) * size : data + cell * v.cell_bytes + element * size;
}

__device__ inline float load_cell(const CellView & v, int head, int cell, int i) {
    const char * const at = address_of(v, head, cell, i);
    switch (v.type) {
    case CELL_F32:
        return *reinterpret_cast<const float *>(at);
    case CELL_F16:
        return __half2float(__ushort_as_half(*reinterpret_cast<const uint16_t *>(at)));
    case CELL_BF16:
        return __uint_as_float(uint32_t(*reinterpret_cast<const uint16_t *>(at)) << 16);
    default:
        return load_quantised(v.type, at, (head * v.dim + i) % QUANTS);
    }
}

// Writes 32 elements of a cell, one a lane; all lanes of the warp call it. `inside` tells which lanes have one.
__device__ inline void store_cells(const CellView & v, int head, int cell, int i, float x, bool inside) {
    if (v.type >= CELL_Q8_0) { // head sizes are multiples of 32, so every lane has an element
        store_quantised(v.type, address_of(v, head, cell, i), i % QUANTS, x);
        return;
    }
    if (!inside) {
        return;
    }
    char * const at = address_of(v, head, cell, i);
    if (v.type == CELL_F32) {
        *reinterpret_cast<float *>(at) = x;
    } else if (v.type == CELL_F16) {
        *reinterpret_cast<uint16_t *>(at) = __half_as_ushort(__float2half_rn(x));
    } else {
        const uint32_t bits = __float_as_uint(x);
        const bool nan = (bits & 0x7fffffff) > 0x7f800000;
        *reinterpret_cast<uint16_t *>(at) =
            uint16_t(nan ? (bits >> 16) | 64 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16); // nearest, ties to even
    }
}

// ---- the host's side ------------------------------------------------------------------------------------------------

void note(cudaError_t status);           // remembers the first failure, for Device::finish
const char * failed();                   // that, once; or null
int lost();                              // as Device::lost
const char * remedy(cudaError_t status); // what to do about it, where its own text does not say; or ""
void wait_for(int gpu, bool asks);       // for what is queued there. `asks`: only if it is not done yet
void * pinned(size_t bytes);             // on the host, for cudaFreeHost; null where there is none

// Makes the GPU that `memory` is on the current one, and gives its stream, on which all work of that GPU follows what
// came before it. Nobody waits: Device::finish does. No other thread queues work on that GPU while it lives.
class Launch {
  public:
    explicit Launch(const void * memory);
    ~Launch();
    Launch(const Launch &) = delete;
    Launch & operator=(const Launch &) = delete;
    cudaStream_t stream() const { return stream_; }
    int gpu() const { return gpu_; }
    bool fine() const { return stream_ != nullptr; }

    // Memory on the GPU for the time of the launch: the next one has it too, after this one. Where there is none that
    // is noted, and the launch is not fine.
    template <class T>
    T * scratch(size_t n) {
        return static_cast<T *>(scratch_bytes(n * sizeof(T)));
    }
    // Makes sure that the next launches find as much scratch memory, and room for as many bytes to copy, without
    // asking the driver.
    void reserve(size_t scratch, size_t copied);
    void wait(); // for what is queued
    // Queues a copy of what the host may change right away.
    void upload(void * to, const void * from, size_t bytes);
    // The same to scratch memory. Null where there is none.
    template <class T>
    const T * uploaded(const T * from, size_t n) {
        T * const to = scratch<T>(n);
        if (to) {
            upload(to, from, n * sizeof(T));
        }
        return to;
    }

  private:
    void * scratch_bytes(size_t bytes);
    int before_ = 0;
    int gpu_ = 0;
    bool waited_ = false; // and nothing was queued since
    cudaStream_t stream_ = nullptr;
    std::unique_lock<std::mutex> alone_;
};

// Bytes that Launch::scratch takes for n elements.
template <class T>
size_t scratch_for(size_t n) {
    return (n * sizeof(T) + 255) / 256 * 256;
}

bool on_one_gpu(const void * a, const void * b);

// Calls body(first, n) for neighbours in a list of descriptors that are on one GPU and of one shape: no more than
// `most` at a time. Which are on one GPU is asked for only where there is more than one.
template <class Args, class Memory, class Same, class Body>
void in_groups(const Args * args, int n, int most, Memory && memory, Same && same, Body && body) {
    for (int first = 0, end; first < n; first = end) {
        for (end = first + 1; end < n && end - first < most && same(args[first], args[end]) &&
                              on_one_gpu(memory(args[first]), memory(args[end]));
             end++) {
        }
        body(args + first, end - first);
    }
}

// Most scratch memory that a launch takes, of no more layers, heads, rows and cells than are given: see
// reserve_scratch().
size_t scratch_of_attention(int n_kv_heads, int heads_per_kv, int n_rows, int n_cells);
size_t scratch_of_scores(int n_layers, int n_kv_heads, int heads_per_kv, int n_rows, int n_cells, int dim);
size_t scratch_of_directions(int n_layers, int n_kv_heads, int dim);
size_t scratch_of_plans(int n_heads, int n_cells);
size_t scratch_of_stages(int n_heads, int n_cells);

#define KVMERGE_DECLARE(name, Args) void name(const Args &);
KVMERGE_DEVICE_KERNELS(KVMERGE_DECLARE)
KVMERGE_HEADS_KERNELS(KVMERGE_DECLARE)
KVMERGE_DEVICE_STEPS(KVMERGE_DECLARE)
#undef KVMERGE_DECLARE
#define KVMERGE_DECLARE(name, Args) void name##_all(const Args * args, int n);
KVMERGE_LAYER_KERNELS(KVMERGE_DECLARE)
#undef KVMERGE_DECLARE

inline int ceil_div(std::ptrdiff_t a, std::ptrdiff_t b) {
    return int((a + b - 1) / b);
}

} // namespace cuda
} // namespace kvmerge
