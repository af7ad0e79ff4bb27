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
    void (*settle)(int place); // or ALL_PLACES
    const char * (*failed)();  // what went wrong since it was last asked, or null, of what is known to be done
    const char * (*finish)();  // waits for all that is queued, and asks that
    int (*lost)(); // how often something has failed. Who asks before and after knows of his own, whoever was told
};

constexpr int ALL_PLACES = -1;

// Raised when Device or a descriptor changes: the CUDA part is a library of its own, and may come from another build.
constexpr int DEVICE_VERSION = 8;
using DeviceEntry = const Device * (*)(int version, const char ** why_not);

const Device & host_device();
// The CUDA part. The first call loads it from the folder of this library. Throws UNSUPPORTED, with the reason, where it
// cannot.
const Device & cuda_device();

// Waits for what CUDA's part has to do, if it is loaded, and not done yet.
void settle_devices() noexcept;

// Waits for what the device has to do. Throws what went wrong there.
inline void check(const Device & device) {
    if (const char * what = device.finish()) {
        throw Error(KVMERGE_E_DEVICE, std::string(device.name) + ": " + what);
    }
}

// Copies from a device are what it has, unless a failure came meanwhile, which another thread may have been told.
class NothingLost {
  public:
    explicit NothingLost(const Device & device) : device_(device), before_(device.lost()) {}
    void check() const {
        kvmerge::check(device_);
        if (device_.lost() != before_) {
            throw Error(KVMERGE_E_DEVICE, std::string(device_.name) +
                                              " failed while values were copied from it; another call had the error");
        }
    }

  private:
    const Device & device_;
    const int before_;
};

// Where an array lies: in a device's memory, near some other, or on the host, where the device's kernels can write too.
struct OnDevice {
    static constexpr const char * OF = "";
    static void * allocate(const Device & d, size_t bytes, const void * near) { return d.allocate(bytes, near); }
    static void release(const Device & d, void * memory) { d.release(memory); }
};
struct OnHost {
    static constexpr const char * OF = " of the host";
    static void * allocate(const Device & d, size_t bytes, const void *) { return d.allocate_shared(bytes); }
    static void release(const Device & d, void * memory) { d.release_shared(memory); }
};

template <class T, class Memory>
class Array {
  public:
    Array() = default;
    Array(const Device & device, size_t n, const void * near = nullptr) : device_(&device), n_(n) {
        data_ = static_cast<T *>(Memory::allocate(device, n * sizeof(T), near));
        if (!data_ && n > 0) {
            throw Error(KVMERGE_E_MEMORY,
                        text("%s: no memory%s for %zu bytes", device.name, Memory::OF, n * sizeof(T)));
        }
    }
    Array(Array && other) noexcept { swap(other); }
    Array & operator=(Array && other) noexcept {
        swap(other);
        return *this;
    }
    ~Array() {
        if (data_) {
            Memory::release(*device_, data_);
        }
    }

    T * data() const { return data_; }
    size_t size() const { return n_; }
    size_t bytes() const { return n_ * sizeof(T); }

  protected:
    const Device * device_ = nullptr;
    T * data_ = nullptr;
    size_t n_ = 0;

  private:
    void swap(Array & other) noexcept {
        std::swap(device_, other.device_);
        std::swap(data_, other.data_);
        std::swap(n_, other.n_);
    }
};

template <class T>
using SharedArray = Array<T, OnHost>;

template <class T>
class DeviceArray : public Array<T, OnDevice> {
  public:
    using Array<T, OnDevice>::Array;
    void zero() { this->device_->zero(this->data_, this->bytes()); }
    void upload(const T * from, size_t n) { this->device_->upload(this->data_, from, n * sizeof(T)); }
    void download(T * to, size_t n, size_t offset = 0) const {
        this->device_->download(to, this->data_ + offset, n * sizeof(T));
    }
    void fetch(T * shared) const { this->device_->fetch(shared, this->data_, this->bytes()); }
};

// Bytes that a vector keeps.
template <class T>
size_t bytes_of(const std::vector<T> & v) {
    return v.capacity() * sizeof(T);
}

} // namespace kvmerge
