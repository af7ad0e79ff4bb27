// Memory of a backend that is neither the host's nor CUDA's (Vulkan, Metal, RPC): only ggml's functions reach it.
#pragma once

#include "kvmerge.h"

#include "ggml.h"

#include <cstddef>

namespace kvmerge {

// Floats in such memory. It is the backend's own, so that nodes of llama.cpp's graph can write to it.
class BackendMemory {
  public:
    BackendMemory() = default;
    // n floats where a tensor's are. Empty where the backend has no room for them, or where ggml's functions for it
    // were not given.
    BackendMemory(const kvmerge_ggml & ggml, const ggml_tensor * near, size_t n);
    BackendMemory(BackendMemory && other) noexcept { swap(other); }
    BackendMemory & operator=(BackendMemory && other) noexcept {
        swap(other);
        return *this;
    }
    ~BackendMemory();

    float * data() const { return data_; } // not to be followed
    ggml_backend_buffer * buffer() const { return buffer_; }
    size_t size() const { return n_; }
    size_t bytes() const { return n_ * sizeof(float); }
    // Sets every bit: each float becomes NOT_COME.
    void mark() const;
    // Brings n floats, from the given one on, to the host. Waits for them.
    void get(float * to, size_t first, size_t n) const;

  private:
    void swap(BackendMemory & other) noexcept;
    kvmerge_ggml ggml_ = {}; // a copy: it may outlive the observer
    ggml_backend_buffer * buffer_ = nullptr;
    float * data_ = nullptr;
    size_t n_ = 0;
};

} // namespace kvmerge
