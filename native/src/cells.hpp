// The K and V cells of one layer, where llama.cpp put them: reading and writing them as single precision.
#pragma once

#include "kvmerge.h"

#include "ggml.h"

#include <cstdint>
#include <vector>

namespace kvmerge {

// One of the two cache tensors of a layer. K is always [n_embd][n_cells] in ggml's order, a row a cell; V is that with flash
// attention on, and transposed ([n_cells][n_embd]) with it off.
struct CellTensor {
    ggml_tensor * tensor = nullptr;
    bool transposed = false;
    int n_cells = 0;
    int head_dim = 0;

    void read(int kv_head, const int32_t * cells, int n, float * out) const;       // out: [n][head_dim]
    void write(int kv_head, const int32_t * cells, int n, const float * in) const; // rounds to the tensor's type
    int64_t bytes() const;
    const char * type_name() const; // "f16" and so on; null for a type that is not handled
};

// Throws UNSUPPORTED when the tensor's type, layout or place is one that read and write would get wrong.
void check_supported(const CellTensor & cells, const kvmerge_ggml & ggml, int layer, const char * which);

} // namespace kvmerge
