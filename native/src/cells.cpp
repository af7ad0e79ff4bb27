// A cache tensor's cells: read and written in place, or by way of a copy on the host.
#include "cells.hpp"

namespace kvmerge {

bool is_host(const ggml_tensor * t, const kvmerge_ggml & ggml) {
    ggml_backend_buffer * const buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return t->data && buffer && ggml.buffer_is_host(buffer);
}

std::vector<char> download(const ggml_tensor * t, const kvmerge_ggml & ggml, const Part & part) {
    size_t bytes = t->nb[0]; // as ggml_nbytes, for types without quantisation blocks
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        if (t->ne[i] <= 0) {
            throw Error(KVMERGE_E_UNSUPPORTED, text("node %s has no elements", t->name));
        }
        bytes += i < 3 ? size_t(t->ne[i] - 1) * t->nb[i] : 0;
    }
    std::vector<char> copy(bytes);
    ggml.tensor_get(t, copy.data(), part.offset(t), bytes);
    return copy;
}

CellTensor::CellTensor(ggml_tensor * t, const CacheLayout & layout, int stream, const Device & preferred,
                       const kvmerge_ggml & ggml)
    : tensor_(t), type_(t->type), start_(t->data), n_streams_(t->ne[2]), bytes_(int64_t(t->nb[2])),
      offset_(size_t(stream) * t->nb[2]), view_{static_cast<char *>(t->data) + offset_,
                                                layout.type,
                                                layout.transposed,
                                                layout.head_dim,
                                                layout.n_cells,
                                                std::ptrdiff_t(t->nb[1])},
      ggml_(&ggml) {
    if (t->nb[1] < bytes_of(layout.type, size_t(t->ne[0])) || t->nb[2] / size_t(layout.n_cells) < t->nb[1]) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("%s: cells that overlap", t->name));
    }
    host_ = is_host(t, ggml);
    const bool reachable = !host_ && &preferred != &host_device() && preferred.owns(view_.data);
    device_ = reachable ? &preferred : &host_device();
    in_place_ = host_ || reachable;
}

const char * CellTensor::type_name() const {
    static const char * const names[] = {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl"};
    return names[view_.type];
}

void CellTensor::refresh() {
    if (!fresh_) {
        mirror_.resize(size_t(bytes()));
        ggml_->tensor_get(tensor_, mirror_.data(), offset_, mirror_.size());
        fresh_ = true;
    }
}

void CellTensor::upload() {
    ggml_->tensor_set(tensor_, mirror_.data(), offset_, mirror_.size());
}

CellView CellTensor::on_device() {
    return in_place_ ? view_ : on_host();
}

void CellTensor::written() {
    if (!in_place_) {
        upload();
    } else {
        fresh_ = false;
    }
}

CellView CellTensor::on_host() {
    CellView view = view_;
    if (!host_) {
        refresh();
        view.data = mirror_.data();
    }
    return view;
}

void CellTensor::write(int kv_head, const int32_t * cells, int n, const float * in) {
    kernels().scatter_cells({on_host(), kv_head, cells, n, in});
    if (!host_) {
        upload();
    }
}

} // namespace kvmerge
