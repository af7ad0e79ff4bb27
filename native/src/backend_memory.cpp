#include "backend_memory.hpp"

#include <cstdint>
#include <utility>

namespace kvmerge {

BackendMemory::BackendMemory(const kvmerge_ggml & ggml, const ggml_tensor * near, size_t n) : ggml_(ggml) {
    ggml_backend_buffer * const there = near->view_src ? near->view_src->buffer : near->buffer;
    if (!ggml.buffer_get_type || !ggml.buft_alloc_buffer || !ggml.buffer_get_base || !ggml.buffer_clear ||
        !ggml.buffer_free || !there || n > SIZE_MAX / sizeof(float)) {
        return;
    }
    buffer_ = ggml.buft_alloc_buffer(ggml.buffer_get_type(there), n * sizeof(float));
    if (buffer_) {
        data_ = static_cast<float *>(ggml.buffer_get_base(buffer_));
        n_ = n;
    }
}

BackendMemory::~BackendMemory() {
    if (buffer_) {
        ggml_.buffer_free(buffer_);
    }
}

void BackendMemory::swap(BackendMemory & other) noexcept {
    std::swap(ggml_, other.ggml_);
    std::swap(buffer_, other.buffer_);
    std::swap(data_, other.data_);
    std::swap(n_, other.n_);
}

void BackendMemory::mark() const {
    ggml_.buffer_clear(buffer_, 0xff);
}

void BackendMemory::get(float * to, size_t first, size_t n) const {
    ggml_tensor whole = {}; // as much of a tensor as ggml looks at
    whole.type = GGML_TYPE_F32;
    whole.buffer = buffer_;
    whole.data = data_;
    whole.ne[0] = int64_t(n_);
    whole.nb[0] = sizeof(float);
    for (int i = 1; i < GGML_MAX_DIMS; i++) {
        whole.ne[i] = 1;
        whole.nb[i] = bytes();
    }
    ggml_.tensor_get(&whole, to, first * sizeof(float), n * sizeof(float));
}

} // namespace kvmerge
