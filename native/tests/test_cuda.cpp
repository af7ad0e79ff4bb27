// CUDA's version of every device kernel: on a GPU, by way of managed memory, or without one on the shim's fibers.
#include "kernel_tests.hpp"

#include "device.hpp"

#include <cuda_runtime.h>

extern "C" const Device * kvmerge_cuda_device(int version, const char ** why_not);

#ifdef KVMERGE_CUDA_SHIM
extern bool shim_has_cublas;
constexpr unsigned TIMES = 12; // a thread is a fiber here: slow
#else
static bool shim_has_cublas;
constexpr unsigned TIMES = 200;
#endif

int main(int argc, char ** argv) {
    const char * why_not = nullptr;
    CHECK(!kvmerge_cuda_device(DEVICE_VERSION + 1, &why_not) && why_not);
    const Device * const device = kvmerge_cuda_device(DEVICE_VERSION, &why_not);
    if (!device) {
        std::printf("no CUDA device: %s\n", why_not);
        return 77; // skipped
    }
    test_allocate = [](size_t n) {
        void * memory = nullptr;
        CHECK(cudaMallocManaged(&memory, n ? n : 1) == cudaSuccess);
        return memory;
    };
    test_release = [](void * memory) { CHECK(cudaFree(memory) == cudaSuccess); };
    const unsigned seed = seed_of(argc, argv), times = TIMES;
    const Device & table = *device;
    for (const bool cublas : {false, true}) { // only the shim can tell them apart
        shim_has_cublas = cublas;
        const char * const isa = cublas ? "CUDA, cuBLAS if it is there" : "CUDA";
        KVMERGE_DEVICE_KERNELS(KVMERGE_TEST)
    }
    test_rotation_composes(table);
    test_moved_cells_keep_bits(table);
    test_entropy_of_known_rows(table);
    CHECK(device->error() == nullptr);
    std::printf("ok\n");
}
