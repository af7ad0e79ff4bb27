// The CUDA part as the library sees it: memory, streams, errors, and the table of kernels.
#include "common.cuh"

#include "device.hpp"

#include <atomic>
#include <mutex>
#include <string>

namespace kvmerge {
namespace cuda {

namespace {

std::mutex mutex;
cudaStream_t streams[MOST_GPUS];
std::atomic<bool> busy[MOST_GPUS]; // something was queued since the host last waited
std::mutex failure_mutex;
std::string failure;
thread_local std::string told;

// What to do about an error, where its own text does not say.
const char * remedy(cudaError_t status) {
    switch (status) {
    case cudaErrorMemoryAllocation:
        return ": the GPU's memory is full. Give the model fewer layers there (-ngl), the context fewer cells (-c, "
               "--budget) or smaller blocks (--block)";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
        return ": kvmerge's CUDA part was compiled for other GPUs than this one. Build it for this one: make cuda "
               "CUDA_ARCHS=<compute capability, as nvidia-smi --query-gpu=compute_cap shows it, without the dot>";
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorInsufficientDriver:
    case cudaErrorJitCompilerNotFound:
        return ": the driver is older than the compiler of kvmerge's CUDA part. Take a newer driver, or build it for "
               "this GPU: make cuda CUDA_ARCHS=<compute capability without the dot>";
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorHardwareStackError:
    case cudaErrorDevicesUnavailable:
    case cudaErrorLaunchTimeout:
        return ": the GPU cannot be used by this process any more, and what it held is gone. Start the program anew; "
               "saved sessions and results are as they were";
    default:
        return "";
    }
}

// The stream of the current GPU. It does not wait for ggml's streams: llama.cpp has synchronised those before it calls.
cudaStream_t stream_of(int gpu) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (gpu < 0 || gpu >= MOST_GPUS) {
        return nullptr;
    }
    if (!streams[gpu]) {
        note(cudaStreamCreateWithFlags(&streams[gpu], cudaStreamNonBlocking));
        cudaMemPool_t pool = nullptr; // by itself it gives all memory back to the driver whenever somebody waits
        uint64_t keep = UINT64_MAX;
        note(cudaDeviceGetDefaultMemPool(&pool, gpu));
        note(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    }
    return streams[gpu];
}

} // namespace

void note(cudaError_t status) {
    if (status == cudaSuccess) {
        return;
    }
    const std::lock_guard<std::mutex> lock(failure_mutex);
    if (failure.empty()) {
        failure = std::string(cudaGetErrorString(status)) + remedy(status);
    }
}

Launch::Launch(const void * memory) {
    cudaPointerAttributes where = {};
    note(cudaGetDevice(&before_));
    const cudaError_t status = cudaPointerGetAttributes(&where, memory);
    note(status);
    if (status == cudaSuccess) {
        gpu_ = where.device;
        if (gpu_ != before_) {
            note(cudaSetDevice(gpu_));
        }
        stream_ = stream_of(gpu_);
    }
}

bool on_one_gpu(const void * a, const void * b) {
    static const int gpus = [] {
        int n = 1;
        return cudaGetDeviceCount(&n) == cudaSuccess ? n : 1;
    }();
    cudaPointerAttributes one = {}, other = {};
    return gpus == 1 || (cudaPointerGetAttributes(&one, a) == cudaSuccess &&
                         cudaPointerGetAttributes(&other, b) == cudaSuccess && one.device == other.device);
}

Launch::~Launch() {
    if (stream_) {
        note(cudaGetLastError()); // errors of the launches
        busy[gpu_] = true;
    }
    if (gpu_ != before_) {
        note(cudaSetDevice(before_));
    }
}

// Waits for a GPU's stream.
static void wait(int gpu) {
    if (busy[gpu].exchange(false)) {
        note(cudaStreamSynchronize(streams[gpu]));
    }
}

static void * allocate(size_t bytes, const void * near) {
    const Launch launch(near);
    void * memory = nullptr;
    if (launch.fine() && cudaMallocAsync(&memory, bytes ? bytes : 1, launch.stream()) != cudaSuccess) {
        cudaGetLastError(); // forgotten here: the caller reports that it got no memory
        return nullptr;
    }
    return memory;
}

static void release(void * memory) {
    const Launch launch(memory);
    if (launch.fine()) {
        note(cudaFreeAsync(memory, launch.stream()));
    }
}

static void zero(void * memory, size_t bytes) {
    const Launch launch(memory);
    if (launch.fine()) {
        note(cudaMemsetAsync(memory, 0, bytes, launch.stream()));
    }
}

static void upload(void * to, const void * from, size_t bytes) {
    const Launch launch(to);
    if (launch.fine()) {
        note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, launch.stream()));
    }
}

static void fetch(void * shared, const void * from, size_t bytes) {
    const Launch launch(from);
    if (launch.fine() && bytes > 0) {
        note(cudaMemcpyAsync(shared, from, bytes, cudaMemcpyDeviceToHost, launch.stream()));
    }
}

static void download(void * to, const void * from, size_t bytes) {
    fetch(to, from, bytes);
    const Launch launch(from);
    if (launch.fine()) {
        note(cudaStreamSynchronize(launch.stream()));
    }
}

static void * allocate_shared(size_t bytes) {
    void * memory = nullptr;
    if (cudaHostAlloc(&memory, bytes ? bytes : 1, cudaHostAllocPortable) != cudaSuccess) {
        cudaGetLastError(); // forgotten here, as in allocate
        return nullptr;
    }
    return memory;
}

static void release_shared(void * memory) {
    note(cudaFreeHost(memory));
}

static int place(const void * memory) {
    cudaPointerAttributes where = {};
    note(cudaPointerGetAttributes(&where, memory));
    return where.device;
}

static void settle(int gpu) {
    if (gpu >= 0 && gpu < MOST_GPUS && busy[gpu] && cudaStreamQuery(streams[gpu]) != cudaSuccess) {
        wait(gpu); // and gives the error, if it is one
    }
}

static bool owns(const void * memory) {
    cudaPointerAttributes where = {};
    if (!memory || cudaPointerGetAttributes(&where, memory) != cudaSuccess) {
        cudaGetLastError(); // forgotten: memory of another kind is no error
        return false;
    }
    return where.type == cudaMemoryTypeDevice || where.type == cudaMemoryTypeManaged;
}

static const char * finish() {
    for (int gpu = 0; gpu < MOST_GPUS; gpu++) {
        wait(gpu);
    }
    const std::lock_guard<std::mutex> lock(failure_mutex);
    if (failure.empty()) {
        return nullptr;
    }
    told.swap(failure);
    failure.clear();
    return told.c_str();
}

void attention_stats_all(const AttentionStatsArgs * args, int n) { // at stops, which are of one layer
    for (int i = 0; i < n; i++) {
        attention_stats(args[i]);
    }
}

void score_stats(const ScoreStatsArgs & a) {
    score_stats_all(&a, 1);
}

void query_moments(const QueryMomentsArgs & a) {
    query_moments_all(&a, 1);
}

void fold_direction(const FoldDirectionArgs & a) {
    fold_direction_all(&a, 1);
}

} // namespace cuda
} // namespace kvmerge

extern "C" __attribute__((visibility("default"))) const kvmerge::Device * kvmerge_cuda_device(int version,
                                                                                              const char ** why_not) {
    using namespace kvmerge;
    static const Device device = [] {
        Device d = {};
        d.name = "CUDA";
#define KVMERGE_ENTRY(kernel, Args) d.kernel = cuda::kernel;
        KVMERGE_DEVICE_KERNELS(KVMERGE_ENTRY);
        KVMERGE_HEADS_KERNELS(KVMERGE_ENTRY);
        KVMERGE_DEVICE_STEPS(KVMERGE_ENTRY);
#undef KVMERGE_ENTRY
#define KVMERGE_ENTRY(kernel, Args) d.kernel##_all = cuda::kernel##_all;
        KVMERGE_LAYER_KERNELS(KVMERGE_ENTRY);
#undef KVMERGE_ENTRY
        d.allocate = cuda::allocate;
        d.release = cuda::release;
        d.allocate_shared = cuda::allocate_shared;
        d.release_shared = cuda::release_shared;
        d.zero = cuda::zero;
        d.upload = cuda::upload;
        d.download = cuda::download;
        d.fetch = cuda::fetch;
        d.owns = cuda::owns;
        d.place = cuda::place;
        d.settle = cuda::settle;
        d.finish = cuda::finish;
        return d;
    }();
    if (version != DEVICE_VERSION) {
        *why_not = "of another version of kvmerge: run 'make cuda' again";
        return nullptr;
    }
    int gpus = 0;
    const cudaError_t status = cudaGetDeviceCount(&gpus);
    if (status != cudaSuccess || gpus == 0) {
        static std::string why;
        why = status != cudaSuccess ? std::string(cudaGetErrorString(status)) + cuda::remedy(status)
                                    : "the driver shows no GPU";
        *why_not = why.c_str();
        cudaGetLastError();
        return nullptr;
    }
    *why_not = "";
    return &device;
}
