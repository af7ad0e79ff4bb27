#include "rope.hpp"

#include "status.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace kvmerge {

namespace {

const ggml_tensor * through_views(const ggml_tensor * t) {
    while (t && (t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE ||
                 t->op == GGML_OP_CONT)) {
        t = t->src[0];
    }
    return t;
}

constexpr const char * HADAMARD = "attn_inp_k_rot";

float param(const ggml_tensor * t, int i) {
    float x;
    std::memcpy(&x, &t->op_params[i], sizeof x);
    return x;
}

} // namespace

Rope rope_of(const ggml_tensor * key, int head_dim, int layer, const Device & device, const kvmerge_ggml & ggml) {
    const ggml_tensor * node = through_views(key);
    Rope rope;
    if (node && node->op == GGML_OP_MUL_MAT && node->src[0] &&
        std::strncmp(node->src[0]->name, HADAMARD, std::strlen(HADAMARD)) == 0) {
        rope.hadamard = int(node->src[0]->ne[0]);
        if (rope.hadamard <= 0 || head_dim % rope.hadamard != 0 || (rope.hadamard & (rope.hadamard - 1)) != 0) {
            throw Error(KVMERGE_E_UNSUPPORTED,
                        text("layer %d: keys rotated by a matrix of size %d are not handled", layer, rope.hadamard));
        }
        node = through_views(node->src[1]);
    }
    if (!node || node->op != GGML_OP_ROPE) {
        // No rotation right before the cache: either none at all, or something follows it that a rotation does not commute with.
        for (int depth = 0; node && depth < 8; depth++, node = node->src[0]) {
            if (node->op == GGML_OP_ROPE) {
                throw Error(KVMERGE_E_UNSUPPORTED,
                            text("layer %d: the keys change after their RoPE rotation, so they cannot be rotated "
                                 "to another position",
                                 layer));
            }
        }
        return rope;
    }
    const int n_dims = node->op_params[1];
    const int mode = node->op_params[2];
    const int n_ctx_orig = node->op_params[4];
    const float base = param(node, 5), scale = param(node, 6), ext = param(node, 7);
    const float beta_fast = param(node, 9), beta_slow = param(node, 10);
    if ((mode & ~GGML_ROPE_TYPE_NEOX) != 0) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: RoPE mode %d (several positions a token) is not handled", layer, mode));
    }
    if (n_dims <= 0 || n_dims > head_dim || n_dims % 2 != 0 || node->op_params[15] != 0) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: RoPE over %d of %d dimensions is not handled", layer, n_dims, head_dim));
    }
    const ggml_tensor * factors = node->src[2];
    rope.n_rot = n_dims;
    rope.neox = (mode & GGML_ROPE_TYPE_NEOX) != 0;
    std::vector<double> freq(size_t(n_dims) / 2);
    // YaRN (Peng et al. 2023): low frequencies are interpolated, high ones are not, a ramp between. Linear in the position.
    const auto corr_dim = [&](float beta) {
        return n_dims * std::log(n_ctx_orig / (beta * 2 * 3.14159265358979323846)) / (2 * std::log(double(base)));
    };
    const double low = std::max(0.0, std::floor(corr_dim(beta_fast)));
    const double high = std::min(n_dims - 1.0, std::ceil(corr_dim(beta_slow)));
    std::vector<float> factor(n_dims / 2, 1.0f);
    if (factors) {
        ggml.tensor_get(factors, factor.data(), 0, factor.size() * sizeof(float));
    }
    for (int i = 0; i < n_dims / 2; i++) {
        const double extrapolated = std::pow(double(base), -2.0 * i / n_dims) / factor[i];
        double mix = 0;
        if (ext != 0) {
            mix = ext * (1 - std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0));
        }
        freq[i] = extrapolated * (scale * (1 - mix) + mix);
    }
    rope.freq = DeviceArray<double>(device, freq.size(), key->view_src ? key->view_src->data : key->data);
    rope.freq.upload(freq.data(), freq.size());
    check(device);
    return rope;
}

} // namespace kvmerge
