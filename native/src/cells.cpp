#include "cells.hpp"

namespace kvmerge {

namespace {

int32_t type_of(ggml_type type) {
    switch (type) {
    case GGML_TYPE_F32:
        return CELL_F32;
    case GGML_TYPE_F16:
        return CELL_F16;
    case GGML_TYPE_BF16:
        return CELL_BF16;
    case GGML_TYPE_Q8_0:
        return CELL_Q8_0;
    default:
        return -1;
    }
}

} // namespace

bool is_host(const ggml_tensor * t, const kvmerge_ggml & ggml) {
    ggml_backend_buffer * const buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return t->data && buffer && ggml.buffer_is_host(buffer);
}

std::vector<char> download(const ggml_tensor * t, const kvmerge_ggml & ggml) {
    size_t bytes = t->nb[0]; // as ggml_nbytes, for types whose block is one element
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        bytes += size_t(t->ne[i] - 1) * t->nb[i];
    }
    std::vector<char> copy(bytes);
    ggml.tensor_get(t, copy.data(), 0, bytes);
    return copy;
}

CellTensor::CellTensor(ggml_tensor * t, bool transposed, int n_head_kv, const Device & preferred, const kvmerge_ggml & ggml,
                       int layer, const char * which)
    : tensor_(t), ggml_(&ggml) {
    const int32_t type = type_of(t->type);
    view_ = {t->data, type, transposed, int(t->ne[0] / n_head_kv), int(t->ne[1]), std::ptrdiff_t(t->nb[1])};
    const bool block_fits = type != CELL_Q8_0 || (!transposed && view_.dim % 32 == 0);
    if (type < 0 || !block_fits) {
        throw Error(KVMERGE_E_UNSUPPORTED,
                    text("layer %d: %s cells of ggml type %d are not handled%s; use f16, f32, bf16 or q8_0 (-ctk, -ctv)", layer,
                         which, int(t->type), block_fits ? "" : " at this head size"));
    }
    if (t->ne[2] != 1 || t->ne[3] != 1) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: %s cells of %lld streams are not handled; use one sequence", layer,
                                                which, (long long)t->ne[2]));
    }
    if (!t->buffer) {
        throw Error(KVMERGE_E_UNSUPPORTED, text("layer %d: %s cells are in no buffer", layer, which));
    }
    host_ = is_host(t, ggml);
    const bool reachable = !host_ && &preferred != &host_device() && preferred.owns(t->data);
    device_ = reachable ? &preferred : &host_device();
    in_place_ = host_ || reachable;
}

int64_t CellTensor::bytes() const {
    return int64_t(tensor_->nb[2]) * tensor_->ne[2];
}

const char * CellTensor::type_name() const {
    static const char * const names[] = {"f32", "f16", "bf16", "q8_0"};
    return names[view_.type];
}

void CellTensor::refresh() {
    if (!fresh_) {
        mirror_.resize(size_t(bytes()));
        ggml_->tensor_get(tensor_, mirror_.data(), 0, mirror_.size());
        fresh_ = true;
    }
}

CellView CellTensor::on_device() {
    return in_place_ ? view_ : on_host();
}

void CellTensor::written() {
    if (!in_place_) {
        ggml_->tensor_set(tensor_, mirror_.data(), 0, mirror_.size());
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
    host_device().scatter_cells({on_host(), kv_head, cells, n, in});
    if (!host_) {
        ggml_->tensor_set(tensor_, mirror_.data(), 0, mirror_.size());
    }
}

} // namespace kvmerge
