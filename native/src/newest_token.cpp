// What the newest token of a ubatch sees: which cells are its sequence's.
#include "llama_graph.hpp"
#include "observer.hpp"
#include "status.hpp"

#include <algorithm>

using namespace kvmerge;

// Throws UNSUPPORTED where the newest token of the ubatch does not see the others.
void kvmerge_observer::require_tokens_seen() const {
    for (size_t t = size_t(ubatch_start); t < token_cell.size(); t++) {
        if (size_t(token_cell[t]) >= in_sequence.size() || !in_sequence[size_t(token_cell[t])]) {
            throw Error(KVMERGE_E_UNSUPPORTED, "the newest token of a batch does not see the others: several sequences "
                                               "are not handled; use a context for each");
        }
    }
}

// The newest token sees all cells of its sequence. A cell that it does not see is empty, or another sequence's.
void kvmerge_observer::saw_mask(const ggml_tensor * mask) {
    in_sequence.clear();
    const size_t n_rows = token_cell.size() - size_t(ubatch_start);
    if (!is_host(mask, params.ggml) || mask->op != GGML_OP_NONE || n_rows == 0 ||
        !is_mask(mask, 1, int(n_rows), part.of)) {
        return; // the mask cannot be read before the graph has run
    }
    const MaskRow newest(mask, part.data(mask), int(n_rows) - 1);
    for (int c = 0; c < int(mask->ne[0]); c++) {
        in_sequence.push_back(newest.sees(c));
    }
    require_tokens_seen();
}

// The same where the mask is known in another way: [n_cells], 0 or HIDDEN.
void kvmerge_observer::saw_newest(const uint16_t * mask) {
    in_sequence.resize(size_t(params.n_cells));
    std::transform(mask, mask + params.n_cells, in_sequence.begin(), [](uint16_t m) { return m == 0; });
    require_tokens_seen();
}

// A mask that lies on a GPU is not looked at before the next ubatch, or before somebody needs to know.
void kvmerge_observer::look_at_newest() {
    if (const uint8_t * const newest = captured_on_gpu.look()) {
        in_sequence.assign(newest, newest + params.n_cells);
        require_tokens_seen();
    }
}

bool kvmerge_observer::is_of_sequence(int cell) const {
    return in_sequence.empty() || (size_t(cell) < in_sequence.size() && in_sequence[size_t(cell)]);
}
