#include "capture_gpu.hpp"

#include "status.hpp"

#include <algorithm>
#include <iterator>
#include <map>
#include <utility>

namespace kvmerge {

void GpuCapture::prepare(const Device & device, int n_layer, int n_tokens, int row, int n_cells) {
    if (!layers_.empty()) {
        return;
    }
    device_ = &device;
    n_tokens_ = n_tokens;
    row_ = row;
    most_cells_ = n_cells;
    newest_ = SharedArray<uint8_t>(device, size_t(n_cells));
    missing_ = SharedArray<int32_t>(device, size_t(n_layer));
    seen_.assign(size_t(n_cells), 0);
    layers_.resize(size_t(n_layer));
    forget_missing();
}

// Makes room for a ubatch where nothing is captured. What was there is not needed any more.
void GpuCapture::reserve(int n_rows) {
    if (n_rows <= capacity_) {
        return;
    }
    const int by_masks = int(std::min<size_t>(LARGE_MASKS / size_t(most_cells_), ENOUGH_ROWS));
    capacity_ = std::max(n_rows, std::min(by_masks, n_tokens_));
    for (Layer & l : layers_) {
        l.queries = {};
    }
    for (Place & p : places_) {
        p.masks = {};
        p.inv_log_visible = {};
    }
}

void GpuCapture::next_ubatch(int first_token, int n_rows, const Part & part) {
    take();
    next_ = {first_token, n_rows};
    part_ = part;
    begun_ = false;
    for (Place & p : places_) {
        p.begun = false;
    }
}

// Where the graph is to leave a layer's queries, the first of which becomes row `first`.
float * GpuCapture::target(int layer, int first, Staging * staging, const void * near) {
    Layer & l = layers_[size_t(layer)];
    if (l.queries.size() == 0) {
        l.queries = DeviceArray<float>(*device_, size_t(capacity_ + 1) * size_t(row_), near);
    }
    if (is_staged()) {
        return staging->at_on_gpu(*device_, layer, near) + size_t(part_.number) * size_t(next_.n_rows) * size_t(row_);
    }
    return waits() ? waiting_row(l) : l.queries.data() + size_t(first) * size_t(row_);
}

// Moves rows that wait, and marks those to come; with a GPU's mask where `place` has not begun.
void GpuCapture::collect(Place & place, const std::vector<int> & layers, const ggml_tensor * mask, int n_kv,
                         Staging * staging) {
    std::vector<const float *> from;
    std::vector<float *> to, coming;
    const int first = rows_.n - next_.n_rows;
    int moved = 0;
    for (const int layer : layers) {
        Layer & l = layers_[size_t(layer)];
        if (l.n_rows != first) {
            continue; // it was not captured before, and is not now
        }
        moved = l.waiting;
        from.push_back(waiting_row(l));
        to.push_back(l.queries.data() + size_t(l.n_rows - l.waiting) * size_t(row_));
        coming.push_back(target(layer, first, staging, l.queries.data()));
        l.waiting = 0;
    }
    if (from.empty()) {
        return;
    }
    CollectQueriesArgs args = {int(from.size()),
                               from.data(),
                               to.data(),
                               std::ptrdiff_t(moved) * row_,
                               coming.data(),
                               row_,
                               next_.n_rows,
                               nullptr,
                               0,
                               0,
                               n_kv,
                               nullptr,
                               most_cells_,
                               nullptr,
                               nullptr};
    if (!place.begun) {
        if (place.masks.size() == 0) {
            place.masks = DeviceArray<uint16_t>(*device_, size_t(capacity_) * size_t(most_cells_), from[0]);
            place.inv_log_visible = DeviceArray<float>(*device_, size_t(capacity_), from[0]);
        }
        if (mask) {
            args.mask = part_.data(mask);
            args.mask_floats = mask->type == GGML_TYPE_F32;
            args.mask_stride = std::ptrdiff_t(mask->nb[1] / mask->nb[0]);
        }
        args.masks = place.masks.data() + size_t(first) * size_t(most_cells_);
        args.inv_log_visible = place.inv_log_visible.data() + first;
        args.newest = &place == places_.data() ? newest_.data() : nullptr;
        place.mask = mask ? mask->data : nullptr;
        place.begun = true;
        looked_ &= args.newest == nullptr;
    }
    device_->collect_queries(args);
}

float * GpuCapture::slot(int layer, const ggml_tensor * queries, const ggml_tensor * mask, int n_kv, int mass_queries,
                         const std::shared_ptr<Staging> & staging) {
    Layer & l = layers_[size_t(layer)];
    const int n = next_.n_rows;
    if (n_kv > most_cells_ || !has_room(begun_ ? 0 : n) ||
        (mask && (mask->op != GGML_OP_NONE || !mask->data || !is_mask(mask, n_kv, n, part_.of)))) {
        return nullptr;
    }
    if (!begun_) {
        if (l.n_rows != rows_.n || !rows_.add(next_, mass_queries)) {
            return nullptr;
        }
        if (rows_.n == n) {
            reserve(n);
        }
        n_cells_ = std::max(n_cells_, n_kv);
        if (is_staged()) {
            staging->reserve_on_gpu(int(layers_.size()), size_t(part_.of) * size_t(n) * size_t(row_));
            staging_ = staging;
        }
        begun_ = true;
    }
    const int first = rows_.n - n;
    if (l.n_rows != first) {
        return nullptr;
    }
    const bool found = l.place < 0; // in the first graph
    if (found) {
        const int number = device_->place(queries->data);
        const auto at =
            std::find_if(places_.begin(), places_.end(), [&](const Place & p) { return p.number == number; });
        l.place = int(at - places_.begin());
        if (at == places_.end()) {
            places_.emplace_back();
            places_.back().number = number;
        }
        places_[size_t(l.place)].layers.push_back(layer);
    }
    Place & place = places_[size_t(l.place)];
    const bool begins = !place.begun, anew = l.queries.size() == 0;
    if (!begins && place.mask != (mask ? mask->data : nullptr)) {
        return nullptr;
    }
    float * const mine = target(layer, first, staging.get(), queries->data);
    if (begins && !anew) {
        std::vector<int> known;
        std::copy_if(place.layers.begin(), place.layers.end(), std::back_inserter(known),
                     [&](int i) { return layers_[size_t(i)].queries.size() > 0; });
        collect(place, known, mask, n_kv, staging.get());
    } else if (anew) {
        collect(place, {layer}, mask, n_kv, staging.get());
    }
    if (anew || at_once_ || layer == place.layers.back()) {
        device_->settle(place.number);
    }
    l.n_rows = rows_.n;
    l.waiting = waits() ? 1 : 0;
    l.staged = is_staged() ? mine : nullptr;
    return is_staged() ? mine - size_t(part_.number) * size_t(n) * size_t(row_) : mine;
}

void GpuCapture::move(const std::vector<const float *> & from, const std::vector<float *> & to,
                      std::ptrdiff_t n) const {
    if (!from.empty()) {
        device_->collect_queries({int(from.size()), from.data(), to.data(), n, nullptr, row_, 0, nullptr, 0, 0, 0,
                                  nullptr, 0, nullptr, nullptr});
    }
}

// Moves staged rows of a ubatch to the block's.
void GpuCapture::take() {
    if (!device_) {
        return;
    }
    for (Place & p : places_) {
        std::vector<const float *> from;
        std::vector<float *> to;
        for (const int layer : p.layers) {
            Layer & l = layers_[size_t(layer)];
            if (const float * const staged = std::exchange(l.staged, nullptr)) {
                from.push_back(staged);
                to.push_back(l.queries.data() + size_t(l.n_rows - next_.n_rows) * size_t(row_));
            }
        }
        move(from, to, std::ptrdiff_t(next_.n_rows) * row_);
    }
    staging_.reset();
}

const uint8_t * GpuCapture::look() {
    if (rows_.n == 0 || places_.empty()) {
        return nullptr;
    }
    if (!looked_) {
        device_->settle(places_[0].number);
        for (size_t c = 0; c < seen_.size(); c++) {
            seen_[c] |= char(newest_.data()[c]);
        }
        looked_ = true;
    }
    return newest_.data();
}

bool GpuCapture::sees(const std::vector<int64_t> & cells) {
    return look() && std::any_of(cells.begin(), cells.end(), [&](int64_t c) { return seen_[size_t(c)] != 0; });
}

void GpuCapture::settle() const {
    for (const Place & p : places_) {
        device_->settle(p.number);
    }
}

void GpuCapture::check() {
    take();
    for (Place & p : places_) {
        std::vector<const float *> from;
        std::vector<float *> to;
        std::map<int, std::pair<std::vector<float *>, std::vector<int32_t *>>> by_rows; // mostly all layers have as
                                                                                        // many
        for (const int layer : p.layers) {
            Layer & l = layers_[size_t(layer)];
            if (l.n_rows == 0) {
                continue;
            }
            by_rows[l.n_rows].first.push_back(l.queries.data());
            by_rows[l.n_rows].second.push_back(missing_.data() + layer);
            if (std::exchange(l.waiting, 0) > 0) {
                from.push_back(waiting_row(l));
                to.push_back(l.queries.data() + size_t(l.n_rows - 1) * size_t(row_));
            }
        }
        move(from, to, row_);
        for (const auto & [n_rows, layers] : by_rows) {
            device_->check_queries(
                {int(layers.first.size()), layers.first.data(), n_rows, row_, rows_.first_token, layers.second.data()});
        }
    }
}

int GpuCapture::missing(int layer) const {
    return layers_.empty() ? -1 : missing_.data()[layer];
}

void GpuCapture::forget_missing() {
    std::fill(missing_.data(), missing_.data() + missing_.size(), -1);
}

void GpuCapture::clear() {
    rows_ = {};
    n_cells_ = 0;
    std::fill(seen_.begin(), seen_.end(), char(0));
    for (Layer & l : layers_) {
        l.n_rows = l.waiting = 0;
        l.staged = nullptr;
    }
    for (Place & p : places_) {
        p.begun = false;
    }
    staging_.reset();
    begun_ = false;
    looked_ = true;
}

size_t GpuCapture::bytes() const {
    size_t n = bytes_of(seen_) + newest_.bytes() + missing_.bytes();
    for (const Layer & l : layers_) {
        n += l.queries.bytes();
    }
    for (const Place & p : places_) {
        n += p.masks.bytes() + p.inv_log_visible.bytes();
    }
    return n;
}

} // namespace kvmerge
