// cuBLAS, opened at run time: the CUDA part works without it.
#include "common.cuh"

#include <dlfcn.h>

#include <initializer_list>
#include <mutex>

namespace kvmerge {
namespace cuda {

namespace {

// The few of cuBLAS's entries that are used, and its constants (cublas_api.h, library_types.h).
constexpr int OP_N = 0, OP_T = 1, REAL_32F = 0, REAL_16F = 2, COMPUTE_32F = 68, GEMM_DEFAULT = -1;
using Handle = void *;

struct Library {
    int (*create)(Handle *) = nullptr;
    int (*set_stream)(Handle, cudaStream_t) = nullptr;
    int (*gemm)(Handle, int, int, int, int, int, const void *, const void *, int, int, long long, const void *, int,
                int, long long, const void *, void *, int, int, long long, int, int, int) = nullptr;
    Library() {
        for (const char * name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so"}) {
            if (void * const library = dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
                create = reinterpret_cast<decltype(create)>(dlsym(library, "cublasCreate_v2"));
                set_stream = reinterpret_cast<decltype(set_stream)>(dlsym(library, "cublasSetStream_v2"));
                gemm = reinterpret_cast<decltype(gemm)>(dlsym(library, "cublasGemmStridedBatchedEx"));
                return;
            }
        }
    }
    bool whole() const { return create && set_stream && gemm; }
};

// The handle of a GPU; null where cuBLAS is not to be had.
Handle handle_of(const Library & library, int gpu) {
    static std::mutex mutex;
    static Handle handles[MOST_GPUS];
    const std::lock_guard<std::mutex> lock(mutex);
    if (library.whole() && gpu >= 0 && gpu < MOST_GPUS && !handles[gpu] && library.create(&handles[gpu]) != 0) {
        handles[gpu] = nullptr;
    }
    return library.whole() && gpu >= 0 && gpu < MOST_GPUS ? handles[gpu] : nullptr;
}

} // namespace

bool cublas_scores(const Launch & launch, const void * keys, std::ptrdiff_t key_stride, const void * queries,
                   int batches, int rows, int cells, int dim, float * scores) {
    static const Library library;
    Handle const handle = handle_of(library, launch.gpu());
    if (!handle || library.set_stream(handle, launch.stream()) != 0) {
        return false;
    }
    const float one = 1, zero = 0;
    // Column-major, as cuBLAS sees it: keys are [dim] by [cells], scores [cells] by [rows] = keys' * queries.
    return library.gemm(handle, OP_T, OP_N, cells, rows, dim, &one, keys, REAL_16F, int(key_stride), dim, queries,
                        REAL_16F, dim, (long long)rows * dim, &zero, scores, REAL_32F, cells, (long long)rows * cells,
                        batches, COMPUTE_32F, GEMM_DEFAULT) == 0;
}

} // namespace cuda
} // namespace kvmerge
