// A group of observers, one for each stream of a llama_context (kv_unified = false): shares its eval callback out.
#pragma once

#include "capture.hpp"
#include "kvmerge.h"

#include "ggml.h"

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

namespace kvmerge {

class Streams {
  public:
    // `handles`: of the streams' observers; `layers`: the numbers of the layers that they watch, ascending.
    Streams(std::vector<kvmerge_observer *> handles, std::vector<int32_t> layers, const kvmerge_ggml & ggml)
        : handles_(std::move(handles)), layers_(std::move(layers)), ggml_(ggml) {
        members_.reserve(handles_.size());
    }
    const std::vector<kvmerge_observer *> & handles() const { return handles_; }
    // llama.cpp's eval callback. An observer that another thread is inside of misses it, and its stream alone.
    bool called(ggml_tensor * node, bool ask) noexcept;
    size_t staging_bytes() const { return staging_ ? staging_->bytes() : 0; }

  private:
    int size() const { return int(handles_.size()); }
    template <class Body>
    bool with(int stream, Body && body) const;
    void begin_ubatch(const ggml_tensor * write) noexcept;
    void share_out(const ggml_tensor * write);

    const std::vector<kvmerge_observer *> handles_;
    const std::vector<int32_t> layers_;
    const kvmerge_ggml ggml_;
    std::vector<int> members_;                // streams of the current ubatch
    std::shared_ptr<Staging> staging_;        // for their queries
    const ggml_tensor * asked_for_ = nullptr; // the node to stop at next, for some of them
};

} // namespace kvmerge
