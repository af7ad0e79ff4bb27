// Where kernels run: the CPU on host memory, or CUDA on device memory. One table, filled from the list of kernels.
#pragma once

#include "kernels/kernels.hpp"
#include "status.hpp"

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

namespace kvmerge {

// What is asked for is queued, and done in the order in which it was asked for on the GPU where its memory lies. The
// host waits in download() and finish() alone.
struct Device {
    const char * name;
#define KVMERGE_MEMBER(name, Args) void (*name)(const Args &);
    KVMERGE_DEVICE_KERNELS(KVMERGE_MEMBER)
    KVMERGE_HEADS_KERNELS(KVMERGE_MEMBER) // null on the host
    KVMERGE_DEVICE_STEPS(KVMERGE_MEMBER)
#undef KVMERGE_MEMBER
    // A kernel on several layers, in as few launches as their shapes allow.
#define KVMERGE_MEMBER(name, Args) void (*name##_all)(const Args * args, int n);
    KVMERGE_LAYER_KERNELS(KVMERGE_MEMBER)
#undef KVMERGE_MEMBER
    void * (*allocate)(size_t bytes, const void * near); // where `near` lies; null when out of memory
    void (*release)(void * memory);
    void * (*allocate_shared)(size_t bytes); // on the host, where kernels can write too; null when out of memory
    void (*release_shared)(void * memory);
    void (*zero)(void * memory, size_t bytes);
    void (*upload)(void * to, const void * from, size_t bytes);    // from the host, which may change `from` right away
    void (*download)(void * to, const void * from, size_t bytes);  // to the host; waits
    void (*fetch)(void * shared, const void * from, size_t bytes); // to shared memory, without waiting
    bool (*owns)(const void * memory);                             // whether kernels can work on it where it lies
    int (*place)(const void * memory);                             // the number of the GPU where it lies
    // Lets others, as llama.cpp, use the memory of this GPU: waits for what is queued there, if it is not done yet.
    void (*settle)(int place);
    const char * (*finish)(); // waits for all that is queued. What went wrong since it was last asked, or null
};

// Raised when Device or a descriptor changes: the CUDA part is a library of its own, and may come from another build.
constexpr int DEVICE_VERSION = 6;
using DeviceEntry = const Device * (*)(int version, const char ** why_not);

const Device & host_device();
// The CUDA part. The first call loads it from the folder of this library. Throws UNSUPPORTED, with the reason, where it
// cannot.
const Device & cuda_device();

// Waits for what the device has to do. Throws what went wrong there.
inline void check(const Device & device) {
    if (const char * what = device.finish()) {
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
    size_t bytes() const { return n_ * sizeof(T); }
    void zero() { device_->zero(data_, n_ * sizeof(T)); }
    void upload(const T * from, size_t n) { device_->upload(data_, from, n * sizeof(T)); }
    void download(T * to, size_t n, size_t offset = 0) const { device_->download(to, data_ + offset, n * sizeof(T)); }
    void fetch(T * shared) const { device_->fetch(shared, data_, n_ * sizeof(T)); }

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

// An array on the host that a device's kernels can write to.
template <class T>
class SharedArray {
  public:
    SharedArray() = default;
    SharedArray(const Device & device, size_t n) : device_(&device), n_(n) {
        data_ = static_cast<T *>(device.allocate_shared(n * sizeof(T)));
        if (!data_) {
            throw Error(KVMERGE_E_MEMORY, text("%s: no memory of the host for %zu bytes", device.name, n * sizeof(T)));
        }
    }
    SharedArray(SharedArray && other) noexcept { swap(other); }
    SharedArray & operator=(SharedArray && other) noexcept {
        swap(other);
        return *this;
    }
    ~SharedArray() {
        if (data_) {
            device_->release_shared(data_);
        }
    }
    T * data() const { return data_; }
    size_t size() const { return n_; }
    size_t bytes() const { return n_ * sizeof(T); }

  private:
    void swap(SharedArray & other) noexcept {
        std::swap(device_, other.device_);
        std::swap(data_, other.data_);
        std::swap(n_, other.n_);
    }
    const Device * device_ = nullptr;
    T * data_ = nullptr;
    size_t n_ = 0;
};

// Bytes that a vector keeps.
template <class T>
size_t bytes_of(const std::vector<T> & v) {
    return v.capacity() * sizeof(T);
}

} // namespace kvmerge
