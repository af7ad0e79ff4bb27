// The CUDA part as the library sees it: memory, streams, errors, and the table of kernels.
#include "common.cuh"

#include "device.hpp"

#include <mutex>
#include <string>

namespace kvmerge {
namespace cuda {

namespace {

std::mutex mutex;
cudaStream_t streams[MOST_GPUS];
thread_local std::string failure, told;

// The stream of the current GPU. It does not wait for ggml's streams: llama.cpp has synchronised those before it calls.
cudaStream_t stream_of(int gpu) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (gpu < 0 || gpu >= MOST_GPUS) {
        return nullptr;
    }
    if (!streams[gpu]) {
        note(cudaStreamCreateWithFlags(&streams[gpu], cudaStreamNonBlocking));
    }
    return streams[gpu];
}

} // namespace

void note(cudaError_t status) {
    if (status != cudaSuccess && failure.empty()) {
        failure = cudaGetErrorString(status);
    }
}

Launch::Launch(const void * memory) {
    cudaPointerAttributes where = {};
    note(cudaGetDevice(&before_));
    const cudaError_t status = cudaPointerGetAttributes(&where, memory);
    note(status);
    if (status == cudaSuccess) {
        gpu_ = where.device;
        note(cudaSetDevice(gpu_));
        stream_ = stream_of(gpu_);
    }
}

Launch::~Launch() {
    if (stream_) {
        note(cudaGetLastError()); // errors of the launches
        note(cudaStreamSynchronize(stream_));
    }
    note(cudaSetDevice(before_));
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

static void download(void * to, const void * from, size_t bytes) {
    const Launch launch(from);
    if (launch.fine()) {
        note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, launch.stream()));
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

static const char * error() {
    if (failure.empty()) {
        return nullptr;
    }
    told.swap(failure);
    failure.clear();
    return told.c_str();
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
#undef KVMERGE_ENTRY
        d.allocate = cuda::allocate;
        d.release = cuda::release;
        d.zero = cuda::zero;
        d.upload = cuda::upload;
        d.download = cuda::download;
        d.owns = cuda::owns;
        d.error = cuda::error;
        return d;
    }();
    if (version != DEVICE_VERSION) {
        *why_not = "of another version of kvmerge: run 'make cuda' again";
        return nullptr;
    }
    int gpus = 0;
    const cudaError_t status = cudaGetDeviceCount(&gpus);
    if (status != cudaSuccess || gpus == 0) {
        *why_not = status != cudaSuccess ? cudaGetErrorString(status) : "the driver shows no GPU";
        cudaGetLastError();
        return nullptr;
    }
    *why_not = "";
    return &device;
}
