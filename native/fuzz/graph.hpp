// A layer's graph as llama.cpp lays it out, of a shape that a fuzzer chooses, and wrong in some way now and then.
#pragma once

#include "choices.hpp"
#include "fake_graph.hpp"

#include <memory>
#include <string>
#include <vector>

struct FuzzShape {
    int n_head_kv, heads_per_kv, dim_k, dim_v, cells, tokens; // tokens: of each part
    int streams, parts;                                       // of the cache; of the ubatch
    ggml_type type;
    bool flash, rope, neox;

    explicit FuzzShape(Choices & c)
        : n_head_kv(c.between(1, 2)), heads_per_kv(c.between(1, 2)), dim_k(c.of<int>({4, 32, 64, 6})),
          dim_v(c.of<int>({4, 32, 64, 5})), cells(c.between(1, 40)), tokens(c.between(1, 3)),
          streams(c.one_in(2) ? 1 : c.between(1, 3)), parts(c.between(1, streams)),
          type(c.of<ggml_type>({GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0,
                                GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL})),
          flash(c.one_in(2)), rope(c.one_in(2)), neox(c.one_in(2)) {}
    int n_head() const { return n_head_kv * heads_per_kv; }
};

// Every tensor has memory for more than it says, so that one that says more than it should stays inside.
class FuzzGraph {
  public:
    FuzzGraph(const FuzzShape & shape, int layer, Choices & c) : shape_(shape) {
        const std::string il = std::to_string(layer);
        const int64_t row_k = int64_t(shape.n_head_kv) * shape.dim_k, row_v = int64_t(shape.n_head_kv) * shape.dim_v;
        const bool transposed = !shape.flash;
        const int all = shape.tokens * shape.parts;
        cache_k_ = add(shape.type, GGML_OP_NONE, "cache_k_l" + il, row_k, shape.cells, shape.streams);
        cache_v_ = add(shape.type, GGML_OP_NONE, "cache_v_l" + il, row_v, shape.cells, shape.streams);
        rows_ = add(GGML_TYPE_I64, GGML_OP_NONE, "rows", all, 1, 1);
        ggml_tensor * plain = add(GGML_TYPE_F32, GGML_OP_MUL_MAT, "Kcur", shape.dim_k, shape.n_head_kv, all);
        ggml_tensor * keys = plain;
        if (shape.rope) {
            keys = add(GGML_TYPE_F32, GGML_OP_ROPE, "Kcur_rope", shape.dim_k, shape.n_head_kv, all);
            keys->src[0] = plain;
            keys->src[1] = add(c.one_in(20) ? GGML_TYPE_I64 : GGML_TYPE_I32, GGML_OP_NONE, "inp_pos", all, 1, 1);
            keys->op_params[1] = shape.dim_k / 2 * 2;
            keys->op_params[2] = shape.neox ? GGML_ROPE_TYPE_NEOX : 0;
            keys->op_params[4] = 2048;
            const float params[] = {10000, 1, 0, 1, 32, 1};
            std::memcpy(&keys->op_params[5], params, sizeof params);
        }
        const int64_t n_rows = int64_t(shape.cells) * shape.streams;
        ggml_tensor * k_write = add(GGML_TYPE_F32, GGML_OP_SET_ROWS, "", row_k, n_rows, 1);
        k_write->view_src = cache_k_, k_write->src[0] = keys, k_write->src[1] = rows_;
        ggml_tensor * v_write =
            add(GGML_TYPE_F32, GGML_OP_SET_ROWS, "", transposed ? 1 : row_v, transposed ? row_v * n_rows : n_rows, 1);
        v_write->view_src = cache_v_, v_write->src[0] = plain, v_write->src[1] = rows_;
        ggml_tensor * root = add(GGML_TYPE_F32, GGML_OP_ROPE, "Qcur", shape.dim_k, shape.n_head(), all);
        queries_ =
            add(GGML_TYPE_F32, GGML_OP_VIEW, "", shape.dim_k, shape.n_head(), shape.tokens, shape.parts, root->data);
        queries_->src[0] = queries_->view_src = root;
        ggml_tensor * q = add(GGML_TYPE_F32, GGML_OP_PERMUTE, "q", shape.dim_k, shape.tokens, shape.n_head(),
                              shape.parts, root->data);
        q->src[0] = c.one_in(3) ? nullptr : queries_;
        ggml_tensor * view =
            add(shape.type, GGML_OP_PERMUTE, "k", shape.dim_k, shape.cells, shape.n_head_kv, shape.parts);
        view->view_src = cache_k_;
        ggml_tensor * mask = add(shape.flash ? GGML_TYPE_F16 : GGML_TYPE_F32, GGML_OP_NONE, "mask", shape.cells,
                                 shape.tokens, 1, shape.parts);
        order_ = {k_write, v_write, queries_};
        if (shape.flash) {
            ggml_tensor * flash =
                add(GGML_TYPE_F32, GGML_OP_FLASH_ATTN_EXT, "", shape.dim_v, shape.n_head(), shape.tokens, shape.parts);
            flash->src[0] = q, flash->src[1] = view, flash->src[2] = cache_v_, flash->src[3] = mask;
            set_scale(flash);
            order_.push_back(flash);
        } else {
            ggml_tensor * kq =
                add(GGML_TYPE_F32, GGML_OP_MUL_MAT, "kq-" + il, shape.cells, shape.tokens, shape.n_head(), shape.parts);
            kq->src[0] = view, kq->src[1] = q;
            ggml_tensor * p = add(GGML_TYPE_F32, GGML_OP_SOFT_MAX, "kq_soft_max-" + il, shape.cells, shape.tokens,
                                  shape.n_head(), shape.parts);
            p->src[0] = kq, p->src[1] = mask;
            if (c.one_in(2)) {
                kq->data = p->data;
            }
            for (size_t i = 0; i < size_t(shape.cells) * size_t(all) * size_t(shape.n_head()); i++) {
                reinterpret_cast<float *>(p->data)[i] = c.one_in(200) ? c.wild_float() : 1.0f / float(shape.cells);
            }
            set_scale(p);
            order_.push_back(kq);
            order_.push_back(p);
        }
        for (size_t i = 0; i < 64; i++) { // some of what the caches and the queries hold
            char * const to = memory_[size_t(c.below(int(memory_.size())))].data();
            const float x = c.one_in(8) ? c.wild_float() : c.number();
            std::memcpy(to + 4 * size_t(c.below(256)), &x, 4);
        }
        Tensor::place();
    }

    // Other tokens for the next ubatch.
    void next(Choices & c) {
        const int first = c.below(shape_.streams - shape_.parts + 1);
        for (int i = 0; i < shape_.tokens * shape_.parts; i++) {
            const int64_t cell = int64_t(first + i / shape_.tokens) * shape_.cells + c.below(shape_.cells);
            const int64_t row = c.one_in(60) ? c.wild_int() : cell;
            std::memcpy(memory_of(rows_) + size_t(i) * sizeof row, &row, sizeof row);
        }
    }
    // What the graph computes that this library reads: the copies of queries.
    void run() {
        const size_t n = size_t(shape_.dim_k) * size_t(shape_.n_head()) * size_t(shape_.tokens * shape_.parts);
        if (queries_->op == GGML_OP_CPY && on_host) {
            std::memcpy(queries_->data, queries_->src[0]->data, n * sizeof(float));
        }
    }

    // Makes one thing wrong.
    void spoil(Choices & c) {
        ggml_tensor & t = *tensors_[size_t(c.below(int(tensors_.size())))];
        switch (c.below(8)) {
        case 0:
        case 1: {
            int64_t & n = t.ne[c.below(4)];
            const int64_t before = n;
            n = c.of<int64_t>({0, 1, 2, 3, 5, 8, 16, 33, 40, -1});
            if (!lay_out(t)) {
                n = before;
                lay_out(t);
            }
            break;
        }
        case 2:
            t.type = c.of<ggml_type>({GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q4_0, GGML_TYPE_I32, GGML_TYPE_Q8_0});
            t.ne[0] = std::min<int64_t>(t.ne[0], 32); // memory is enough for any type then
            break;
        case 3: {
            const float x = c.wild_float();
            std::memcpy(&t.op_params[c.below(12)], &x, sizeof x);
            break;
        }
        case 4:
            t.op_params[c.below(16)] = c.wild_int();
            break;
        case 5: {
            ggml_tensor *& source = t.src[c.below(4)];
            if (source) { // to another that is there: llama.cpp's nodes have the sources that their kind needs
                source = tensors_[size_t(c.below(4))].get();
            }
            break;
        }
        case 6:
            std::snprintf(t.name, sizeof t.name, "%s",
                          c.of<const char *>({"", "kq-", "kq-0", "kq_soft_max-1", "kq-99999999999", "cache_k_l0",
                                              "cache_v_l65535", "cache_k_l-1", "cache_k_l0x"}));
            break;
        default:
            t.buffer = nullptr;
        }
    }

    const std::vector<ggml_tensor *> & order() const { return order_; }
    ggml_tensor * any(Choices & c) { return tensors_[size_t(c.below(int(tensors_.size())))].get(); }

  private:
    static constexpr size_t BYTES = 1 << 16; // of each tensor's memory

    // Of 32 elements of a quantised type; 0 of others.
    static size_t block_bytes(ggml_type type) {
        switch (type) {
        case GGML_TYPE_Q8_0:
            return 34;
        case GGML_TYPE_Q5_1:
            return 24;
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_IQ4_NL:
            return 18;
        default:
            return 0;
        }
    }

    // Strides as ggml makes them. False: its memory is not enough.
    static bool lay_out(ggml_tensor & t) {
        const auto n = [&](int i) { return size_t(t.ne[i] > 0 ? t.ne[i] : 1); };
        t.nb[1] = block_bytes(t.type) ? (n(0) + 31) / 32 * block_bytes(t.type) : t.nb[0] * n(0);
        t.nb[2] = t.nb[1] * n(1);
        t.nb[3] = t.nb[2] * n(2);
        return t.nb[3] * n(3) <= BYTES;
    }

    // With memory of its own, or a view of another's.
    ggml_tensor * add(ggml_type type, ggml_op op, const std::string & name, int64_t n0, int64_t n1, int64_t n2,
                      int64_t n3 = 1, void * data = nullptr) {
        memory_.emplace_back(BYTES);
        tensors_.push_back(std::make_unique<Tensor>(type, op, name, n0, n1, n2, data ? data : memory_.back().data()));
        Tensor & t = *tensors_.back();
        t.ne[3] = n3;
        t.nb[0] = type == GGML_TYPE_BF16 ? 2 : block_bytes(type) ? block_bytes(type) : t.nb[0];
        lay_out(t);
        return &t;
    }
    static void set_scale(ggml_tensor * t) {
        const float scale = 0.5f;
        std::memcpy(t->op_params, &scale, sizeof scale);
    }

    FuzzShape shape_;
    std::vector<std::vector<char>> memory_;
    std::vector<std::unique_ptr<Tensor>> tensors_;
    ggml_tensor *cache_k_, *cache_v_, *rows_, *queries_;
    std::vector<ggml_tensor *> order_;
};
