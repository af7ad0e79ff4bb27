// Where kernels run: the CPU on host memory, or CUDA on device memory. One table, filled from the list of kernels.
#pragma once

#include "kernels/kernels.hpp"
#include "status.hpp"

#include <cstddef>
#include <string>
#include <utility>

namespace kvmerge {

struct Device {
    const char * name;
#define KVMERGE_MEMBER(name, Args) void (*name)(const Args &);
    KVMERGE_DEVICE_KERNELS(KVMERGE_MEMBER)
    KVMERGE_HEADS_KERNELS(KVMERGE_MEMBER) // null on the host
#undef KVMERGE_MEMBER
    void * (*allocate)(size_t bytes, const void * near); // where `near` lies; null when out of memory
    void (*release)(void * memory);
    void (*zero)(void * memory, size_t bytes);
    void (*upload)(void * to, const void * from, size_t bytes);   // from the host
    void (*download)(void * to, const void * from, size_t bytes); // to the host
    bool (*owns)(const void * memory);                            // whether the kernels can work on it where it lies
    const char * (*error)();                                      // what went wrong since it was last asked, or null
};

// Raised when Device or a descriptor changes: the CUDA part is a library of its own, and may come from another build.
constexpr int DEVICE_VERSION = 4;
using DeviceEntry = const Device * (*)(int version, const char ** why_not);

const Device & host_device();
// The CUDA part. The first call loads it from the folder of this library. Throws UNSUPPORTED, with the reason, where it
// cannot.
const Device & cuda_device();

inline void check(const Device & device) {
    if (const char * what = device.error()) {
        throw Error(KVMERGE_E_DEVICE, std::string(device.name) + ": " + what);
    }
}

// An array in a device's memory.
template <class T>
class DeviceArray {
  public:
    DeviceArray() = default;
    DeviceArray(const Device & device, size_t n, const void * near) : device_(&device), n_(n) {
        data_ = static_cast<T *>(device.allocate(n * sizeof(T), near));
        if (!data_ && n > 0) {
            throw Error(KVMERGE_E_MEMORY, text("%s: no memory for %zu bytes", device.name, n * sizeof(T)));
        }
    }
    DeviceArray(DeviceArray && other) noexcept { swap(other); }
    DeviceArray & operator=(DeviceArray && other) noexcept {
        swap(other);
        return *this;
    }
    ~DeviceArray() {
        if (data_) {
            device_->release(data_);
        }
    }

    T * data() const { return data_; }
    size_t size() const { return n_; }
    void zero() { device_->zero(data_, n_ * sizeof(T)); }
    void upload(const T * from, size_t n) { device_->upload(data_, from, n * sizeof(T)); }
    void download(T * to, size_t n, size_t offset = 0) const { device_->download(to, data_ + offset, n * sizeof(T)); }

  private:
    void swap(DeviceArray & other) noexcept {
        std::swap(device_, other.device_);
        std::swap(data_, other.data_);
        std::swap(n_, other.n_);
    }
    const Device * device_ = nullptr;
    T * data_ = nullptr;
    size_t n_ = 0;
};

} // namespace kvmerge
