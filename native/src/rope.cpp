// The rotation of a layer's keys, from the parameters of its ROPE node.
#include "rope.hpp"

#include "llama_graph.hpp"
#include "status.hpp"

#include <algorithm>
#include <cmath>

namespace kvmerge {

Rope rope_of(const ggml_tensor * write, int head_dim, int layer, const Device & device, const kvmerge_ggml & ggml) {
    const KeySource key = key_source(write, head_dim, layer);
    Rope rope;
    rope.hadamard = key.hadamard;
    if (!key.rope) {
        return rope;
    }
    const RopeParams p = rope_params(key.rope);
    if ((p.mode & ~GGML_ROPE_TYPE_NEOX) != 0) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: RoPE mode %d (several positions a token) is not handled", layer, p.mode));
    }
    if (p.first < 0 || p.first > head_dim || key.first > head_dim || p.n_dims > head_dim) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: RoPE over %d dimensions from %d of %d is not handled", layer,
                                                p.n_dims, p.first, head_dim));
    }
    const int first = key.first + p.first;
    rope.neox = (p.mode & GGML_ROPE_TYPE_NEOX) != 0;
    rope.n_rot = first + p.n_dims;
    if (p.n_dims <= 0 || p.n_dims % 2 != 0 || rope.n_rot > head_dim) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: RoPE over the dimensions %d to %d of %d is not handled",
                                                layer, first, rope.n_rot, head_dim));
    }
    if (first != 0 && (rope.neox || first % 2 != 0)) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: keys of an unrotated part of %d dimensions and a rotated one in NEOX order are not "
                         "handled",
                         layer, first));
    }
    const int pairs = p.n_dims / 2;
    // YaRN (Peng et al. 2023): low frequencies are interpolated, high ones are not, with a ramp between them. Angles
    // stay linear in the position.
    const auto corr_dim = [&](float beta) {
        return p.n_dims * std::log(p.n_ctx_orig / (beta * 2 * 3.14159265358979323846)) / (2 * std::log(double(p.base)));
    };
    const double low = std::max(0.0, std::floor(corr_dim(p.beta_fast)));
    const double high = std::min(p.n_dims - 1.0, std::ceil(corr_dim(p.beta_slow)));
    std::vector<float> factor(size_t(pairs), 1.0f);
    if (const ggml_tensor * factors = key.rope->src[2]) {
        ggml.tensor_get(factors, factor.data(), 0, factor.size() * sizeof(float));
    }
    const int still = first / 2; // pairs before the rotated part, whose frequency is 0
    std::vector<double> freq(static_cast<size_t>(still + pairs));
    for (int i = 0; i < pairs; i++) {
        const double extrapolated = std::pow(double(p.base), -2.0 * i / p.n_dims) / factor[size_t(i)];
        double mix = 0;
        if (p.ext_factor != 0) {
            mix = p.ext_factor * (1 - std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0));
        }
        freq[size_t(still + i)] = extrapolated * (p.scale * (1 - mix) + mix);
    }
    if (!std::all_of(freq.begin(), freq.end(), [](double f) { return std::isfinite(f); })) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: RoPE with frequencies that are not finite", layer));
    }
    rope.freq = DeviceArray<double>(device, freq.size(), write->view_src->data);
    rope.freq.upload(freq.data(), freq.size());
    check(device);
    return rope;
}

} // namespace kvmerge
