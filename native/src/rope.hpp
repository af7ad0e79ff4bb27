// The rotation that llama.cpp gave the keys of a layer, read from the ROPE node of its graph.
#pragma once

#include "device.hpp"
#include "kvmerge.h"

#include "ggml.h"

#include <vector>

namespace kvmerge {

struct Rope {
    int n_rot = 0; // rotated dimensions of a key; 0: the keys carry no rotation
    bool neox = false;
    DeviceArray<double> freq; // [n_rot/2]: radians a position
    int hadamard = 0;         // quantised keys are stored multiplied by Hadamard matrices of this size; 0: they are not
};

// `write`: the node that writes keys to the cache.
// Throws UNSUPPORTED for rotations that depend on more than one position (M-RoPE) or that a merge cannot follow.
Rope rope_of(const ggml_tensor * write, int head_dim, int layer, const Device & device, const kvmerge_ggml & ggml);

} // namespace kvmerge
