// The K and V cells of one layer, where llama.cpp put them.
#pragma once

#include "device.hpp"
#include "kvmerge.h"
#include "llama_graph.hpp"

#include "ggml.h"

#include <cstdint>
#include <vector>

namespace kvmerge {

// A copy on the host of a part of a tensor in any backend's memory.
std::vector<char> download(const ggml_tensor * tensor, const kvmerge_ggml & ggml, const Part & part);
bool is_host(const ggml_tensor * tensor, const kvmerge_ggml & ggml);

// A stream's slice of one of the two cache tensors of a layer. K is [n_embd][n_cells] in ggml's order, one row for each
// cell. So is V with flash attention on; with it off, V is transposed: [n_cells][n_embd].
//
// There are three cases. In host memory everything works in place. In memory that the CUDA part can reach, kernels work
// in place and the host reads a mirror. In any other, kernels work on the mirror, which is then uploaded.
class CellTensor {
  public:
    CellTensor() = default;
    // `stream` is below the tensor's number of streams.
    CellTensor(ggml_tensor * tensor, const CacheLayout & layout, int stream, const Device & preferred,
               const kvmerge_ggml & ggml);

    ggml_tensor * tensor() const { return tensor_; }
    // Whether `t` is the tensor as it was first seen. Another context's tensor may have come to the same address.
    bool is_of(const ggml_tensor * t) const {
        return t == tensor_ && t->data == start_ && int(t->ne[1]) == view_.n_cells &&
               std::ptrdiff_t(t->nb[1]) == view_.cell_bytes && int64_t(t->nb[2]) == bytes_ && t->ne[2] == n_streams_ &&
               t->type == type_;
    }
    const Device & device() const { return *device_; }
    // Whether the device works on the tensor's own memory, which is not the host's.
    bool is_in_place_on(const Device & device) const { return in_place_ && !host_ && device_ == &device; }
    int n_cells() const { return view_.n_cells; }
    int dim() const { return view_.dim; }
    bool transposed() const { return view_.transposed != 0; }
    int64_t bytes() const { return bytes_; } // of the slice
    const char * type_name() const;          // "f16" and so on
    size_t own_bytes() const { return bytes_of(mirror_); }

    void decoded() { fresh_ = false; } // llama.cpp wrote to it
    CellView on_device();              // for kernels of device(); first updates the mirror if they work on that
    void written();                    // to be called after kernels of device() have written
    CellView on_host();                // for reading on the host; first updates the mirror
    void write(int kv_head, const int32_t * cells, int n, const float * in);

  private:
    void refresh();
    void upload();
    ggml_tensor * tensor_ = nullptr;
    ggml_type type_ = GGML_TYPE_COUNT;
    const void * start_ = nullptr; // of the whole tensor
    int64_t n_streams_ = 0, bytes_ = 0;
    size_t offset_ = 0;  // of the slice in the tensor
    CellView view_ = {}; // views the tensor's own memory
    const Device * device_ = nullptr;
    const kvmerge_ggml * ggml_ = nullptr;
    bool in_place_ = true; // device() can work on the tensor's memory
    bool host_ = true;
    std::vector<char> mirror_;
    bool fresh_ = false;
};

} // namespace kvmerge
