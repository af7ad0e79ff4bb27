#include "capture.hpp"

#include "status.hpp"

#include <algorithm>
#include <cstring>
#include <utility>

namespace kvmerge {

namespace {

constexpr char MARK[] = "kvmerge's copy"; // among the parameters of a node

} // namespace

bool is_capture(const ggml_tensor * node) {
    return node->op == GGML_OP_CPY && std::memcmp(node->op_params, MARK, sizeof MARK) == 0;
}

ggml_tensor * view_of_queries(const ggml_tensor * queries) {
    if (!queries || queries->op != GGML_OP_PERMUTE || !queries->src[0]) {
        return nullptr;
    }
    ggml_tensor * const view = queries->src[0];
    const ggml_tensor * const root = view->src[0];
    const bool whole = view->op == GGML_OP_VIEW && root && view->view_src && view->data == root->data &&
                       view->type == GGML_TYPE_F32 && root->type == GGML_TYPE_F32 && root->ne[3] == 1 &&
                       std::equal(view->ne, view->ne + 2, root->ne) && view->ne[2] * view->ne[3] == root->ne[2] &&
                       std::equal(view->nb, view->nb + GGML_MAX_DIMS - 1, root->nb) && view->nb[0] == sizeof(float) &&
                       (view->ne[3] == 1 || view->nb[3] == view->nb[2] * size_t(view->ne[2]));
    const bool permuted = queries->ne[0] == view->ne[0] && queries->ne[1] == view->ne[2] &&
                          queries->ne[2] == view->ne[1] && queries->ne[3] == view->ne[3] && queries->data == view->data;
    return whole && permuted ? view : nullptr;
}

ggml_tensor * copy_of_queries(const ggml_tensor * queries) {
    ggml_tensor * const copy = queries && queries->op == GGML_OP_PERMUTE ? queries->src[0] : nullptr;
    return copy && is_capture(copy) ? copy : nullptr;
}

void capture(ggml_tensor * view, float * to) {
    view->op = GGML_OP_CPY; // into itself, as ggml_cast makes them
    view->src[1] = view;
    view->view_src = nullptr;
    view->view_offs = 0;
    view->data = to;
    for (int i = 1; i < GGML_MAX_DIMS; i++) {
        view->nb[i] = view->nb[i - 1] * size_t(view->ne[i - 1]);
    }
    std::memcpy(view->op_params, MARK, sizeof MARK); // a view's is an offset, here of 0
}

void release(ggml_tensor * node) {
    ggml_tensor * const root = node->src[0];
    node->op = GGML_OP_VIEW;
    std::memset(node->op_params, 0, sizeof MARK);
    node->src[1] = nullptr;
    node->view_src = root->view_src ? root->view_src : root;
    node->view_offs = root->view_src ? root->view_offs : 0;
    node->data = root->data;
    std::copy(root->nb, root->nb + GGML_MAX_DIMS, node->nb);
    if (node->ne[3] > 1) { // the root's tokens are cut into parts
        node->nb[3] = node->nb[2] * size_t(node->ne[2]);
    }
}

bool CapturedRows::add(const Ubatch & next, int mass_queries) {
    if (n > 0 && next.first != first_token + n) {
        return false;
    }
    if (n == 0) {
        first_token = next.first;
    }
    if (mass_queries > 0 && next.n_rows >= mass_queries) { // an observation window is over the newest queries alone
        first_of_mass = n + next.n_rows - mass_queries;
    }
    ubatches.push_back({n, next.n_rows});
    n += next.n_rows;
    return true;
}

void Captured::prepare(int n_layer, int n_tokens, int row, int n_cells) {
    if (layers_.empty()) {
        row_ = row;
        n_tokens_ = n_tokens;
        most_cells_ = n_cells;
        seen_.assign(size_t(n_cells), 0);
        layers_.resize(size_t(n_layer));
    }
}

bool Captured::add_masks(const ggml_tensor * mask, int n_kv) {
    const int n = next_.n_rows;
    if ((rows_.n > 0 && next_.first != rows_.first_token + rows_.n) || n_kv > most_cells_ ||
        (mask && (mask->op != GGML_OP_NONE || !mask->data || !is_mask(mask, n_kv, n, part_.of)))) {
        return false;
    }
    masks_.resize(size_t(rows_.n + n) * size_t(most_cells_), HIDDEN);
    for (int r = 0; r < n; r++) {
        uint16_t * const row = masks_.data() + size_t(rows_.n + r) * size_t(most_cells_);
        const MaskRow given(mask, mask ? part_.data(mask) : nullptr, r);
        for (int c = 0; c < n_kv; c++) {
            const bool sees = given.sees(c);
            row[c] = sees ? 0 : HIDDEN;
            seen_[size_t(c)] |= char(sees);
        }
        n_cells_ = given.end(n_kv, n_cells_);
        inv_log_visible_.push_back(inverse_log(given.visible(n_kv)));
    }
    return true;
}

float * Captured::slot(int layer, const ggml_tensor * mask, int n_kv, int mass_queries,
                       const std::shared_ptr<Staging> & staging) {
    const int n = next_.n_rows;
    Layer & l = layers_[size_t(layer)];
    if (!begun_) {
        if (l.n_rows != rows_.n || !add_masks(mask, n_kv) || !rows_.add(next_, mass_queries)) {
            return nullptr;
        }
        mask_ = mask;
        begun_ = true;
    }
    const int first = rows_.n - n;
    if (l.n_rows != first || mask != mask_) {
        return nullptr;
    }
    l.queries.resize(size_t(n_tokens_) * size_t(row_));
    float *whole = l.queries.data() + size_t(first) * size_t(row_), *mine = whole;
    if (part_.of > 1) {
        staging->layer_size = size_t(part_.of) * size_t(n) * size_t(row_);
        staging->memory.resize(size_t(layers_.size()) * staging->layer_size);
        whole = staging->at(layer);
        mine = whole + size_t(part_.number) * size_t(n) * size_t(row_);
        l.staged = mine;
        staging_ = staging;
    }
    for (int r = 0; r < n; r++) {
        std::memcpy(mine + size_t(r) * size_t(row_), &NOT_COME, sizeof NOT_COME);
    }
    l.n_rows = rows_.n;
    return whole;
}

void Captured::take() noexcept {
    for (Layer & l : layers_) {
        if (const float * const from = std::exchange(l.staged, nullptr)) {
            const size_t n = size_t(next_.n_rows) * size_t(row_);
            std::memcpy(l.queries.data() + size_t(l.n_rows) * size_t(row_) - n, from, n * sizeof(float));
        }
    }
    staging_.reset();
}

bool Captured::sees(const std::vector<int64_t> & cells) const {
    return rows_.n > 0 && std::any_of(cells.begin(), cells.end(), [&](int64_t c) { return seen_[size_t(c)] != 0; });
}

void Captured::clear() {
    rows_ = {};
    n_cells_ = 0;
    masks_.clear();
    inv_log_visible_.clear();
    std::fill(seen_.begin(), seen_.end(), char(0));
    for (Layer & l : layers_) {
        l.n_rows = 0;
        l.staged = nullptr;
    }
    staging_.reset();
    mask_ = nullptr;
    begun_ = false;
}

int Captured::missing(int layer) const {
    for (int r = 0; r < n_rows(layer); r++) {
        if (std::memcmp(queries(layer) + size_t(r) * size_t(row_), &NOT_COME, sizeof NOT_COME) == 0) {
            return rows_.first_token + r;
        }
    }
    return -1;
}

size_t Staging::bytes() const {
    size_t n = bytes_of(memory);
    for (const auto & of_layer : on_gpu) {
        n += of_layer.bytes();
    }
    return n;
}

size_t Captured::bytes() const {
    size_t n = bytes_of(masks_) + bytes_of(seen_) + bytes_of(inv_log_visible_);
    for (const Layer & l : layers_) {
        n += bytes_of(l.queries);
    }
    return n;
}

} // namespace kvmerge
