// The CPU as a device, and the CUDA part, loaded when it is first asked for.
#include "device.hpp"

#include "capture_steps.hpp"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#if !defined(_WIN32)
#    include <dlfcn.h>
#endif

namespace kvmerge {

const Device & host_device() {
    static const Device device = [] {
        Device d = {};
        d.name = "CPU";
#define KVMERGE_ENTRY(kernel, Args) d.kernel = kernels().kernel;
        KVMERGE_DEVICE_KERNELS(KVMERGE_ENTRY);
#undef KVMERGE_ENTRY
#define KVMERGE_ENTRY(kernel, Args)                      \
    d.kernel##_all = [](const Args * args, int n) {      \
        for (const Args * a = args; a < args + n; a++) { \
            kernels().kernel(*a);                        \
        }                                                \
    };
        KVMERGE_LAYER_KERNELS(KVMERGE_ENTRY);
#undef KVMERGE_ENTRY
#define KVMERGE_ENTRY(step, Args) d.step = host_##step;
        KVMERGE_DEVICE_STEPS(KVMERGE_ENTRY);
#undef KVMERGE_ENTRY
        d.allocate = [](size_t bytes, const void *) { return std::malloc(bytes ? bytes : 1); };
        d.allocate_shared = [](size_t bytes) { return std::malloc(bytes ? bytes : 1); };
        d.release_shared = [](void * memory) { std::free(memory); };
        d.release = [](void * memory) { std::free(memory); };
        d.zero = [](void * memory, size_t bytes) { std::memset(memory, 0, bytes); };
        d.upload = [](void * to, const void * from, size_t bytes) { std::memcpy(to, from, bytes); };
        d.download = d.upload;
        d.fetch = d.upload;
        d.owns = [](const void *) { return true; };
        d.place = [](const void *) { return 0; };
        d.settle = [](int) {};
        d.failed = []() -> const char * { return nullptr; };
        d.finish = d.failed;
        d.lost = [] { return 0; };
        return d;
    }();
    return device;
}

namespace {

#if defined(_WIN32)
const Device * load(std::string & why_not) {
    why_not = "the CUDA part is not built for Windows";
    return nullptr;
}
#else
// libkvmerge-cuda lies beside this library.
std::string path_beside() {
    Dl_info here;
    if (!dladdr(reinterpret_cast<const void *>(&kvmerge_version), &here) || !here.dli_fname) {
        return "libkvmerge-cuda.so";
    }
    const std::string path = here.dli_fname;
    const size_t slash = path.rfind('/');
    return (slash == std::string::npos ? "" : path.substr(0, slash + 1)) + "libkvmerge-cuda.so";
}

const Device * load(std::string & why_not) {
    const std::string path = path_beside();
    void * const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        why_not = std::string(dlerror()) + ": build it with 'make cuda'";
        return nullptr;
    }
    const auto entry = reinterpret_cast<DeviceEntry>(dlsym(library, "kvmerge_cuda_device"));
    const char * reason = "not a CUDA part of kvmerge";
    const Device * device = entry ? entry(DEVICE_VERSION, &reason) : nullptr;
    why_not = device ? "" : path + ": " + reason;
    return device;
}
#endif

std::atomic<const Device *> loaded{nullptr};

} // namespace

const Device & cuda_device() {
    static std::mutex mutex;
    static std::string why_not;
    const std::lock_guard<std::mutex> lock(mutex);
    if (!loaded) {
        loaded = load(why_not);
    }
    if (!loaded) {
        throw Error(KVMERGE_E_UNSUPPORTED, "no CUDA device: " + why_not);
    }
    return *loaded;
}

void settle_devices() noexcept {
    if (const Device * const device = loaded) {
        device->settle(ALL_PLACES);
    }
}

} // namespace kvmerge

extern "C" kvmerge_status kvmerge_device_check(int32_t device) {
    return kvmerge::guarded("kvmerge_device_check", [&] {
        kvmerge::require(device == KVMERGE_DEVICE_CPU || device == KVMERGE_DEVICE_CUDA,
                         "device must be one of KVMERGE_DEVICE_*");
        kvmerge::kernels(); // throws where KVMERGE_ISA names none. Work on a GPU needs the CPU's kernels too
        if (device == KVMERGE_DEVICE_CUDA) {
            kvmerge::cuda_device();
        }
    });
}
