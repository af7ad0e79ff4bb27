#include "capture.hpp"

#include "cells.hpp"
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

void capture(ggml_tensor * view, const QuerySlot & slot) {
    view->op = GGML_OP_CPY; // into itself, as ggml_cast makes them
    view->src[1] = view;
    view->view_src = nullptr;
    view->view_offs = 0;
    view->data = slot.to;
    view->buffer = slot.buffer ? slot.buffer : view->buffer;
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
    node->buffer = node->view_src->buffer;
    std::copy(root->nb, root->nb + GGML_MAX_DIMS, node->nb);
    if (node->ne[3] > 1) { // the root's tokens are cut into parts
        node->nb[3] = node->nb[2] * size_t(node->ne[2]);
    }
}

bool CapturedRows::add(const Ubatch & next, int mass_queries) {
    if (!follows(next)) {
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

void Captured::prepare(const kvmerge_ggml & ggml, int n_layer, int n_tokens, int row, int n_cells) {
    if (layers_.empty()) {
        ggml_ = &ggml;
        row_ = row;
        n_tokens_ = n_tokens;
        most_cells_ = n_cells;
        seen_.assign(size_t(n_cells), 0);
        layers_.resize(size_t(n_layer));
    }
}

// The rows of a mask that the ubatch has, as they lie in the part's memory; empty for one that the host can read there.
std::vector<char> Captured::read(const ggml_tensor * mask, int n_kv) const {
    if (!mask || is_host(mask, *ggml_)) {
        return {};
    }
    std::vector<char> rows(size_t(next_.n_rows - 1) * mask->nb[1] + size_t(n_kv) * mask->nb[0]);
    ggml_->tensor_get(mask, rows.data(), part_.offset(mask), rows.size());
    return rows;
}

void Captured::add_masks(const ggml_tensor * mask, int n_kv) {
    const int n = next_.n_rows;
    const std::vector<char> copy = read(mask, n_kv);
    const char * const data = !mask ? nullptr : copy.empty() ? part_.data(mask) : copy.data();
    masks_.resize(size_t(rows_.n + n) * size_t(most_cells_), HIDDEN);
    for (int r = 0; r < n; r++) {
        uint16_t * const row = masks_.data() + size_t(rows_.n + r) * size_t(most_cells_);
        const MaskRow given(mask, data, r);
        for (int c = 0; c < n_kv; c++) {
            const bool sees = given.sees(c);
            row[c] = sees ? 0 : HIDDEN;
            seen_[size_t(c)] |= char(sees);
        }
        n_cells_ = given.end(n_kv, n_cells_);
        inv_log_visible_.push_back(inverse_log(given.visible(n_kv)));
    }
    known_.push_back(mask);
}

// Whether another mask of the ubatch lets its rows see what the first one does.
bool Captured::sees_the_same(const ggml_tensor * mask, int n_kv) {
    if (std::find(known_.begin(), known_.end(), mask) != known_.end()) {
        return true;
    }
    const std::vector<char> copy = read(mask, n_kv);
    const char * const data = !mask ? nullptr : copy.empty() ? part_.data(mask) : copy.data();
    for (int r = 0; r < next_.n_rows; r++) {
        const uint16_t * const row = masks_.data() + size_t(rows_.n - next_.n_rows + r) * size_t(most_cells_);
        const MaskRow given(mask, data, r);
        for (int c = 0; c < most_cells_; c++) {
            if ((c < n_kv && given.sees(c)) != (row[c] == 0)) {
                return false;
            }
        }
    }
    known_.push_back(mask);
    return true;
}

// Where the graph is to leave a layer's queries, the first of which becomes row `first`. Rows that have yet to come are
// marked.
QuerySlot Captured::place(int layer, int first, const ggml_tensor * far, Staging * staging) {
    Layer & l = layers_[size_t(layer)];
    const size_t row = size_t(row_), n = size_t(next_.n_rows);
    l.queries.resize(size_t(n_tokens_) * row);
    if (part_.of == 1 && far) {
        if (l.far.size() == 0 && !l.refused) {
            l.far = BackendMemory(*ggml_, far, size_t(n_tokens_) * row);
            l.refused = l.far.size() == 0;
        }
        if (l.refused) {
            return {};
        }
        if (l.far_from == l.far_to) {
            l.far.mark();
            l.far_from = first;
        }
        l.far_to = first + next_.n_rows;
        return {l.far.data() + size_t(first) * row, l.far.buffer()};
    }
    bring(l); // earlier rows may have come another way
    float *whole = l.queries.data() + size_t(first) * row, *mine = whole;
    if (part_.of > 1) {
        staging->layer_size = size_t(part_.of) * n * row;
        staging->memory.resize(layers_.size() * staging->layer_size);
        whole = staging->at(layer);
        mine = whole + size_t(part_.number) * n * row;
        if (far && !staging->reserve_far(layer, *ggml_, far)) {
            return {};
        }
        l.staged = mine;
    }
    if (part_.of > 1 && far) {
        const BackendMemory & there = staging->far[size_t(layer)].memory;
        return {there.data(), there.buffer()};
    }
    for (size_t r = 0; r < n; r++) {
        std::memcpy(mine + r * row, &NOT_COME, sizeof NOT_COME);
    }
    return {whole, nullptr};
}

QuerySlot Captured::slot(int layer, const ggml_tensor * far, const ggml_tensor * mask, int n_kv, int mass_queries,
                         const std::shared_ptr<Staging> & staging) {
    const int n = next_.n_rows, first = begun_ ? rows_.n - n : rows_.n;
    Layer & l = layers_[size_t(layer)];
    if (l.n_rows != first || n_kv > most_cells_ ||
        (mask && (mask->op != GGML_OP_NONE || !mask->data || !is_mask(mask, n_kv, n, part_.of))) ||
        (begun_ ? !sees_the_same(mask, n_kv) : !rows_.follows(next_))) {
        return {};
    }
    const QuerySlot slot = place(layer, first, far, staging.get());
    if (!slot.to) {
        return {};
    }
    if (!begun_) {
        add_masks(mask, n_kv);
        rows_.add(next_, mass_queries);
        begun_ = true;
    }
    l.n_rows = rows_.n;
    if (part_.of > 1) {
        staging_ = staging;
    }
    return slot;
}

void Captured::take() noexcept {
    for (size_t i = 0; i < layers_.size(); i++) {
        Layer & l = layers_[i];
        if (const float * const from = std::exchange(l.staged, nullptr)) {
            staging_->bring(int(i));
            const size_t n = size_t(next_.n_rows) * size_t(row_);
            std::memcpy(l.queries.data() + size_t(l.n_rows) * size_t(row_) - n, from, n * sizeof(float));
        }
    }
    staging_.reset();
}

void Captured::bring(Layer & l) noexcept {
    const size_t first = size_t(l.far_from) * size_t(row_), end = size_t(l.far_to) * size_t(row_);
    if (end > first) {
        l.far.get(l.queries.data() + first, first, end - first);
        l.far_from = l.far_to;
    }
}

void Captured::bring() noexcept {
    for (Layer & l : layers_) {
        bring(l);
    }
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
        l.n_rows = l.far_from = l.far_to = 0;
        l.staged = nullptr;
    }
    staging_.reset();
    known_.clear();
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

bool Staging::reserve_far(int layer, const kvmerge_ggml & ggml, const ggml_tensor * near) {
    far.resize(std::max(far.size(), size_t(layer) + 1));
    Far & f = far[size_t(layer)];
    if (f.memory.size() < layer_size && !refused) {
        f.memory = BackendMemory(); // first, for want of room
        f.memory = BackendMemory(ggml, near, layer_size);
        refused = f.memory.size() == 0;
    }
    if (refused) {
        return false;
    }
    if (!std::exchange(f.coming, true)) {
        f.memory.mark();
    }
    return true;
}

void Staging::bring(int layer) noexcept {
    const std::lock_guard<std::mutex> lock(bringing);
    if (size_t(layer) < far.size() && std::exchange(far[size_t(layer)].coming, false)) {
        far[size_t(layer)].memory.get(at(layer), 0, layer_size);
    }
}

size_t Staging::bytes() const {
    size_t n = bytes_of(memory);
    for (const Far & f : far) {
        n += f.memory.bytes();
    }
    for (const auto & of_layer : on_gpu) {
        n += of_layer.bytes();
    }
    return n;
}

size_t Captured::bytes() const {
    size_t n = bytes_of(masks_) + bytes_of(seen_) + bytes_of(inv_log_visible_);
    for (const Layer & l : layers_) {
        n += bytes_of(l.queries) + l.far.bytes();
    }
    return n;
}

} // namespace kvmerge
