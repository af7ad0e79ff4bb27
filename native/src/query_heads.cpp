// Moments of each query head's queries as they were before their rotation: what to expect of queries to come.
#include "kernels/hadamard.hpp"
#include "llama_graph.hpp"
#include "observer.hpp"
#include "status.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

using namespace kvmerge;

namespace {

// The rotation of a layer's queries over so many positions, as cosines and sines of its pairs.
struct Turn {
    Turn(const Rope & rope, int32_t position) : cosine(size_t(rope.n_rot) / 2), sine(cosine.size()) {
        for (size_t i = 0; i < cosine.size(); i++) {
            cosine[i] = float(std::cos(position * rope.freq.data()[i]));
            sine[i] = float(std::sin(position * rope.freq.data()[i]));
        }
    }
    void undo(const Rope & rope, float * q, int dim) const {
        if (rope.hadamard > 0) {
            hadamard_transform(q, dim, rope.hadamard);
        }
        const size_t pairs = cosine.size();
        for (size_t i = 0; i < pairs; i++) {
            float & a = q[rope.neox ? i : 2 * i];
            float & b = q[rope.neox ? i + pairs : 2 * i + 1];
            const float x = a, y = b;
            a = x * cosine[i] + y * sine[i];
            b = y * cosine[i] - x * sine[i];
        }
    }
    std::vector<float> cosine, sine;
};

} // namespace

// Notes the positions that the tokens of a ubatch are rotated to, at the first layer that rotates. `write` is a layer's
// node that writes keys; nothing of the graph has run.
void kvmerge_observer::saw_positions(const ggml_tensor * write, int layer) {
    const size_t n = written.size();
    if (layer == 0) {
        positions.resize(token_cell.size()); // 0 where nothing is rotated
        positions_known = false;
    }
    const ggml_tensor * const rope =
        positions_known ? nullptr : key_source(write, layers[size_t(layer)].k.dim(), layer).rope;
    if (!rope || positions.size() != token_cell.size()) { // the first layer's write was missed: refused later
        return;
    }
    const ggml_tensor * const given = rope->src[1];
    if (!given || given->type != GGML_TYPE_I32 || given->ne[0] != int64_t(n) * part.of) {
        throw Error(KVMERGE_E_UNSUPPORTED, "the tokens' positions have an unexpected type or shape");
    }
    params.ggml.tensor_get(given, positions.data() + ubatch_start, size_t(part.number) * n * sizeof(int32_t),
                           n * sizeof(int32_t));
    positions_known = true;
}

// A graph whose keys were not seen to be written, or more queries than tokens.
void kvmerge_observer::require_positions(int64_t n_queries, int layer) const {
    if (positions.size() != token_cell.size() || n_queries != int64_t(token_cell.size()) - ubatch_start) {
        throw Error(KVMERGE_E_STATE, text("layer %d: %lld queries came, of tokens whose keys were not seen to be "
                                          "written",
                                          layer, (long long)n_queries));
    }
}

// Adds the queries of some heads to their moments. q: of head first_head + h and row r at h * head_stride + r *
// row_stride. position: of the rows, position_step apart.
void kvmerge_observer::add_query_heads(Layer & l, int first_head, int n_heads, const float * q,
                                       std::ptrdiff_t head_stride, std::ptrdiff_t row_stride, int n_rows,
                                       const int32_t * position, int position_step, float keep) {
    const int dim = l.k.dim();
    std::vector<float> before(size_t(n_heads) * size_t(n_rows) * size_t(dim));
    for (int r = 0; r < n_rows; r++) {
        const Turn turn(l.rope, position[std::ptrdiff_t(r) * position_step]);
        for (int h = 0; h < n_heads; h++) {
            float * const at = before.data() + (size_t(h) * size_t(n_rows) + size_t(r)) * size_t(dim);
            const float * const from = q + h * head_stride + r * row_stride;
            std::copy(from, from + dim, at);
            turn.undo(l.rope, at, dim);
        }
    }
    const size_t first = size_t(first_head) * size_t(dim);
    host_device().query_moments({before.data(), std::ptrdiff_t(n_rows) * dim, dim, n_heads, 1, n_rows, dim, keep,
                                 l.head_sum.data() + first, l.head_second.data() + first * size_t(dim)});
}
