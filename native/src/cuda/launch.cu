// Work for GPUs: their streams, the memory that launches share, what went wrong.
#include "common.cuh"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <vector>

namespace kvmerge {
namespace cuda {

namespace {

// Memory that grows and is kept. What is too small for a request stays until nobody uses it any more.
struct Arena {
    char * memory = nullptr;
    size_t size = 0, used = 0; // used: of this memory, and all of what was too small
    std::vector<char *> outgrown;
};

// A GPU, and what belongs to its stream. Who holds `mutex` is the only one to queue work there.
struct Gpu {
    std::mutex mutex;
    cudaStream_t stream = nullptr;
    std::atomic<bool> busy{false}; // something was queued since the host last waited
    Arena scratch;                 // on the GPU, for one launch after the other
    Arena copied;                  // pinned: what was given to upload() since the host last waited
};

constexpr size_t ALIGNMENT = 256, LEAST_ARENA = size_t(64) << 10;
constexpr size_t MOST_COPIED = size_t(4) << 20; // bytes of one upload: more of them the driver copies, and may wait

Gpu * const gpus = new Gpu[MOST_GPUS]; // there until the very end: handles may be freed after main()
std::mutex failure_mutex;
std::string failure;
std::atomic<int> failures{0}; // of any kind
thread_local std::string told;

// Makes a GPU's stream, on the current GPU. It does not wait for ggml's streams: llama.cpp has synchronised those
// before it calls.
void open(Gpu & gpu, int number) {
    if (!gpu.stream) {
        note(cudaStreamCreateWithFlags(&gpu.stream, cudaStreamNonBlocking));
        cudaMemPool_t pool = nullptr; // by itself it gives all memory back to the driver whenever somebody waits
        uint64_t keep = UINT64_MAX;
        note(cudaDeviceGetDefaultMemPool(&pool, number));
        note(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep));
    }
}

// The next `bytes` of an arena. `allocate` gives more memory, or null.
template <class Allocate>
void * take(Arena & arena, size_t bytes, Allocate && allocate) {
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (!arena.memory || arena.used + bytes > arena.size) {
        const size_t size = std::max({2 * arena.size, LEAST_ARENA, arena.used + bytes});
        char * const memory = static_cast<char *>(allocate(size));
        if (!memory) {
            return nullptr;
        }
        if (arena.memory) {
            arena.outgrown.push_back(arena.memory);
        }
        arena.memory = memory, arena.size = size;
    }
    arena.used += bytes;
    return arena.memory + arena.used - bytes;
}

// Nobody uses what was taken any more.
template <class Release>
void give_back(Arena & arena, Release && release) {
    for (char * const memory : arena.outgrown) {
        release(memory);
    }
    arena.outgrown.clear();
    arena.used = 0;
}

// When a GPU has done all that was queued, or has failed.
void done(Gpu & gpu, cudaError_t status) {
    note(status);
    gpu.busy = false;
    give_back(gpu.copied, [](char * memory) { note(cudaFreeHost(memory)); });
}

} // namespace

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

void * pinned(size_t bytes) {
    void * memory = nullptr;
    if (cudaHostAlloc(&memory, bytes, cudaHostAllocPortable) != cudaSuccess) {
        cudaGetLastError(); // forgotten: the caller knows what it got
        return nullptr;
    }
    return memory;
}

void note(cudaError_t status) {
    if (status == cudaSuccess) {
        return;
    }
    failures++;
    const std::lock_guard<std::mutex> lock(failure_mutex);
    if (failure.empty()) {
        failure = std::string(cudaGetErrorString(status)) + remedy(status);
    }
}

Launch::Launch(const void * memory) {
    cudaPointerAttributes where = {};
    const cudaError_t status = cudaPointerGetAttributes(&where, memory);
    note(status);
    if (status != cudaSuccess || where.device < 0 || where.device >= MOST_GPUS) {
        return;
    }
    note(cudaGetDevice(&before_));
    gpu_ = where.device;
    if (gpu_ != before_) {
        note(cudaSetDevice(gpu_));
    }
    alone_ = std::unique_lock<std::mutex>(gpus[gpu_].mutex);
    open(gpus[gpu_], gpu_);
    stream_ = gpus[gpu_].stream;
}

Launch::~Launch() {
    if (!alone_) {
        return;
    }
    Gpu & gpu = gpus[gpu_];
    give_back(gpu.scratch, [&](char * memory) { note(cudaFreeAsync(memory, gpu.stream)); });
    note(cudaGetLastError()); // errors of the launches
    gpu.busy = !waited_;
    if (gpu_ != before_) {
        note(cudaSetDevice(before_));
    }
}

void Launch::wait() {
    if (stream_) {
        done(gpus[gpu_], cudaStreamSynchronize(stream_));
        waited_ = true;
    }
}

void * Launch::scratch_bytes(size_t bytes) {
    if (!stream_) {
        return nullptr;
    }
    return take(gpus[gpu_].scratch, bytes, [&](size_t size) {
        void * memory = nullptr;
        const cudaError_t status = cudaMallocAsync(&memory, size, stream_);
        if (status != cudaSuccess) {
            cudaGetLastError();
            note(status);
            stream_ = nullptr;
        }
        return memory;
    });
}

void Launch::reserve(size_t scratch, size_t copied) {
    scratch_bytes(scratch);
    if (stream_) {
        Arena & arena = gpus[gpu_].copied;
        const size_t used = arena.used;
        take(arena, copied, pinned);
        arena.used = used;
    }
}

void Launch::upload(void * to, const void * from, size_t bytes) {
    if (!stream_ || bytes == 0) {
        return;
    }
    void * const copy = bytes <= MOST_COPIED ? take(gpus[gpu_].copied, bytes, pinned) : nullptr;
    if (copy) { // what is not pinned the driver may wait for
        std::memcpy(copy, from, bytes);
    }
    note(cudaMemcpyAsync(to, copy ? copy : from, bytes, cudaMemcpyHostToDevice, stream_));
}

bool on_one_gpu(const void * a, const void * b) {
    static const int count = [] {
        int n = 1;
        return cudaGetDeviceCount(&n) == cudaSuccess ? n : 1;
    }();
    cudaPointerAttributes one = {}, other = {};
    return count == 1 || (cudaPointerGetAttributes(&one, a) == cudaSuccess &&
                          cudaPointerGetAttributes(&other, b) == cudaSuccess && one.device == other.device);
}

void wait_for(int number, bool asks) {
    Gpu & gpu = gpus[number];
    if (!gpu.busy) {
        return;
    }
    const std::lock_guard<std::mutex> alone(gpu.mutex);
    if (!gpu.busy) {
        return;
    }
    cudaError_t status = asks ? cudaStreamQuery(gpu.stream) : cudaErrorNotReady;
    if (status == cudaErrorNotReady) {
        if (asks) {
            cudaGetLastError(); // which would say so again, as if it were an error
        }
        status = cudaStreamSynchronize(gpu.stream);
    }
    done(gpu, status);
}

int lost() {
    return failures;
}

const char * failed() {
    const std::lock_guard<std::mutex> lock(failure_mutex);
    if (failure.empty()) {
        return nullptr;
    }
    told.swap(failure);
    failure.clear();
    return told.c_str();
}

} // namespace cuda
} // namespace kvmerge
