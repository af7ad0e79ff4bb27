// The CUDA part as the library sees it: memory, waiting, and the table of kernels.
#include "common.cuh"

#include "device.hpp"

#include <algorithm>
#include <string>

namespace kvmerge {
namespace cuda {

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
    Launch(to).upload(to, from, bytes);
}

static void fetch(void * shared, const void * from, size_t bytes) {
    const Launch launch(from);
    if (launch.fine() && bytes > 0) {
        note(cudaMemcpyAsync(shared, from, bytes, cudaMemcpyDeviceToHost, launch.stream()));
    }
}

static void download(void * to, const void * from, size_t bytes) {
    Launch launch(from);
    if (launch.fine() && bytes > 0) {
        note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, launch.stream()));
        launch.wait();
    }
}

static void * allocate_shared(size_t bytes) {
    return pinned(bytes ? bytes : 1);
}

static void release_shared(void * memory) {
    note(cudaFreeHost(memory));
}

static int place(const void * memory) {
    cudaPointerAttributes where = {};
    note(cudaPointerGetAttributes(&where, memory));
    return where.device;
}

static void settle(int number) {
    for (int i = 0; i < MOST_GPUS; i++) {
        if (i == number || number == ALL_PLACES) {
            wait_for(i, true);
        }
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
    for (int i = 0; i < MOST_GPUS; i++) {
        wait_for(i, false);
    }
    return failed();
}

void reserve_scratch(const ReserveScratchArgs & a) {
    const int n_heads = a.n_layers * a.n_kv_heads;
    // What one block has uploaded: descriptors of heads, and arrays by head, token and cell.
    constexpr size_t A_HEAD = sizeof(ProjectCellsArgs) + sizeof(ExpectedAttentionArgs) + sizeof(PlanGroupsArgs) +
                              sizeof(MergeHead) + 2 * sizeof(void *) + 2 * sizeof(float);
    const size_t copied = size_t(n_heads) * A_HEAD + size_t(a.n_rows) * 2 * sizeof(int32_t) + size_t(a.n_cells) +
                          16 * scratch_for<char>(1);
    Launch launch(a.near);
    if (launch.fine()) {
        launch.reserve(
            std::max({scratch_of_attention(a.n_kv_heads, a.heads_per_kv, a.n_rows, a.n_cells),
                      scratch_of_scores(a.n_layers, a.n_kv_heads, a.heads_per_kv, a.n_rows, a.n_cells, a.dim),
                      scratch_of_directions(a.n_layers, a.n_kv_heads, a.dim), scratch_of_plans(n_heads, a.n_cells),
                      scratch_of_stages(n_heads, a.n_cells),
                      scratch_for<MergeHead>(size_t(n_heads) + 1) + scratch_for<int>(size_t(n_heads) + 1),
                      scratch_for<ProjectCellsArgs>(size_t(n_heads))}),
            copied);
    }
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
        d.failed = cuda::failed;
        d.finish = cuda::finish;
        d.lost = cuda::lost;
        return d;
    }();
    if (version != DEVICE_VERSION) {
        *why_not = "of another version of kvmerge: run 'make cuda' again";
        return nullptr;
    }
    int n = 0;
    const cudaError_t status = cudaGetDeviceCount(&n);
    if (status != cudaSuccess || n == 0) {
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
