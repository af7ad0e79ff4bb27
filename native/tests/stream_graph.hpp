// Ubatches of several streams as llama.cpp lays them out, made by hand and run: queries are copied where capturing asks
// for it, keys and values come into the cache, and the graph is cut where the callback wants it.
#pragma once

#include "fake_graph.hpp"

#include <algorithm>
#include <cmath>
#include <memory>

// What one stream has in a ubatch: numbers that depend on the stream and on its tokens alone.
struct StreamTokens {
    std::vector<int> cells;               // [tokens]
    std::vector<std::vector<float>> q;    // [layer]: [tokens][heads][dim]
    std::vector<std::vector<float>> p;    // [layer]: [heads][tokens][cells]
    std::vector<std::vector<float>> k, v; // [layer]: [tokens][dim]
    int seen = 0;                         // cells in use before
};

class StreamGraph {
  public:
    static constexpr int DIM = 4, CELLS = 16, HEADS = 2, LAYERS = 2;

    StreamGraph(int n_streams, bool flash) : n_streams_(n_streams), flash_(flash) {
        for (int i = 0; i < LAYERS; i++) {
            k_.emplace_back(size_t(n_streams) * DIM * CELLS);
            v_.emplace_back(size_t(n_streams) * DIM * CELLS);
            cache_k_.push_back(add(GGML_TYPE_F32, GGML_OP_NONE, "cache_k_l" + std::to_string(i), DIM, CELLS, n_streams,
                                   1, k_.back().data()));
            cache_v_.push_back(add(GGML_TYPE_F32, GGML_OP_NONE, "cache_v_l" + std::to_string(i), DIM, CELLS, n_streams,
                                   1, v_.back().data()));
        }
    }

    int stops = 0, copies = 0;
    std::vector<float> & keys(int layer) { return k_[size_t(layer)]; }
    std::vector<float> & values(int layer) { return v_[size_t(layer)]; }

    // A ubatch of the streams first, first + 1, ...
    void decode(kvmerge_observer * o, int first, const std::vector<StreamTokens> & parts) {
        const int n = int(parts[0].cells.size()), of = int(parts.size()), all = n * of;
        nodes_.clear(), memory_.clear();
        std::vector<ggml_tensor *> order;
        auto & rows = memory<int64_t>(size_t(all));
        auto & value_rows = memory<int64_t>(size_t(all) * DIM);
        auto & mask_data = memory<float>(size_t(all) * CELLS);
        auto & half_data = memory<uint16_t>(size_t(all) * CELLS);
        for (int part = 0; part < of; part++) {
            for (int t = 0; t < n; t++) {
                const int row = part * n + t;
                rows[size_t(row)] = int64_t(first + part) * CELLS + parts[size_t(part)].cells[size_t(t)];
                for (int c = 0; c < CELLS; c++) {
                    const auto & cells = parts[size_t(part)].cells;
                    const bool sees = c < parts[size_t(part)].seen ||
                                      std::find(cells.begin(), cells.begin() + t + 1, c) != cells.begin() + t + 1;
                    mask_data[size_t(row * CELLS + c)] = sees ? 0 : -INFINITY;
                    half_data[size_t(row * CELLS + c)] = sees ? 0 : 0xfc00;
                }
            }
        }
        ggml_tensor * const index = add(GGML_TYPE_I64, GGML_OP_NONE, "rows", all, 1, 1, 1, rows.data());
        ggml_tensor * const value_index =
            add(GGML_TYPE_I64, GGML_OP_NONE, "v_rows", int64_t(all) * DIM, 1, 1, 1, value_rows.data());
        ggml_tensor * const mask = add(flash_ ? GGML_TYPE_F16 : GGML_TYPE_F32, GGML_OP_NONE, "mask", CELLS, n, 1, of,
                                       flash_ ? (void *)half_data.data() : mask_data.data());
        for (int layer = 0; layer < LAYERS; layer++) {
            const std::string il = std::to_string(layer);
            auto & q_data = memory<float>(size_t(all) * HEADS * DIM);
            auto & p_data = memory<float>(size_t(all) * HEADS * CELLS);
            for (int part = 0; part < of; part++) {
                const auto &q = parts[size_t(part)].q[size_t(layer)], &p = parts[size_t(part)].p[size_t(layer)];
                std::copy(q.begin(), q.end(), q_data.begin() + part * int(q.size()));
                std::copy(p.begin(), p.end(), p_data.begin() + part * int(p.size()));
            }
            ggml_tensor * const plain = add(GGML_TYPE_F32, GGML_OP_MUL_MAT, "Kcur-" + il, DIM, all, 1, 1, nullptr);
            ggml_tensor * const k_write =
                add(GGML_TYPE_F32, GGML_OP_SET_ROWS, "", DIM, CELLS * n_streams_, 1, 1, k_[size_t(layer)].data());
            k_write->view_src = cache_k_[size_t(layer)], k_write->src[0] = plain, k_write->src[1] = index;
            ggml_tensor * const v_write =
                add(GGML_TYPE_F32, GGML_OP_SET_ROWS, "", flash_ ? DIM : 1,
                    int64_t(CELLS) * n_streams_ * (flash_ ? 1 : DIM), 1, 1, v_[size_t(layer)].data());
            v_write->view_src = cache_v_[size_t(layer)];
            v_write->src[1] = flash_ ? index : value_index;
            // The queries, a view of them cut into parts, and its permutation.
            ggml_tensor * const root = add(GGML_TYPE_F32, GGML_OP_ROPE, "Qcur", DIM, HEADS, all, 1, q_data.data());
            ggml_tensor * const view = add(GGML_TYPE_F32, GGML_OP_VIEW, "", DIM, HEADS, n, of, q_data.data());
            view->view_src = root, view->src[0] = root;
            ggml_tensor * const q = add(GGML_TYPE_F32, GGML_OP_PERMUTE, "q", DIM, n, HEADS, of, q_data.data());
            std::swap(q->nb[1], q->nb[2]);
            q->nb[1] = view->nb[2], q->nb[2] = view->nb[1];
            q->src[0] = view, q->view_src = root;
            ggml_tensor * const keys = add(GGML_TYPE_F32, GGML_OP_PERMUTE, "k", DIM, CELLS, 1, of,
                                           k_[size_t(layer)].data() + first * DIM * CELLS);
            keys->view_src = cache_k_[size_t(layer)];
            order.insert(order.end(), {k_write, v_write, view});
            ggml_tensor * last;
            if (flash_) {
                last = add(GGML_TYPE_F32, GGML_OP_FLASH_ATTN_EXT, "", DIM, HEADS, n, of, nullptr);
                last->src[0] = q, last->src[1] = keys, last->src[3] = mask;
            } else {
                ggml_tensor * const kq =
                    add(GGML_TYPE_F32, GGML_OP_MUL_MAT, "kq-" + il, CELLS, n, HEADS, of, p_data.data());
                kq->src[0] = keys, kq->src[1] = q;
                last = add(GGML_TYPE_F32, GGML_OP_SOFT_MAX, "kq_soft_max-" + il, CELLS, n, HEADS, of, p_data.data());
                last->src[0] = kq, last->src[1] = mask;
                order.push_back(kq);
            }
            const float scale = 0.5f;
            std::memcpy(last->op_params, &scale, sizeof scale);
            order.push_back(last);
        }
        Tensor::place();
        run(o, order, first, parts);
    }

  private:
    void run(kvmerge_observer * o, const std::vector<ggml_tensor *> & order, int first,
             const std::vector<StreamTokens> & parts) {
        size_t done = 0;
        for (size_t i = 0; i < order.size(); i++) {
            const bool stop = kvmerge_eval_callback(order[i], true, o);
            if (!stop && i + 1 < order.size()) {
                continue;
            }
            for (; done <= i; done++) {
                compute(order[done], first, parts);
            }
            if (stop) {
                stops++;
                CHECK(kvmerge_eval_callback(order[i], false, o));
            }
        }
    }

    void compute(ggml_tensor * node, int first, const std::vector<StreamTokens> & parts) {
        if (node->op == GGML_OP_CPY) { // from a contiguous root
            std::memcpy(memory_of(node), memory_of(node->src[0]), node->nb[3] * size_t(node->ne[3]));
            copies++;
        } else if (node->op == GGML_OP_SET_ROWS) {
            for (int layer = 0; layer < LAYERS; layer++) {
                const bool is_key = node->view_src == cache_k_[size_t(layer)];
                if (!is_key && node->view_src != cache_v_[size_t(layer)]) {
                    continue;
                }
                for (size_t part = 0; part < parts.size(); part++) {
                    for (size_t t = 0; t < parts[part].cells.size(); t++) {
                        const int cell = parts[part].cells[t];
                        for (int d = 0; d < DIM; d++) {
                            const auto & from = is_key ? parts[part].k : parts[part].v;
                            float * const to =
                                (is_key ? k_ : v_)[size_t(layer)].data() + (size_t(first) + part) * DIM * CELLS;
                            const bool transposed = !is_key && !flash_;
                            to[transposed ? d * CELLS + cell : cell * DIM + d] =
                                from[size_t(layer)][t * DIM + size_t(d)];
                        }
                    }
                }
            }
        }
    }

    ggml_tensor * add(ggml_type type, ggml_op op, const std::string & name, int64_t n0, int64_t n1, int64_t n2,
                      int64_t n3, void * data) {
        auto & where = op == GGML_OP_NONE && name.rfind("cache", 0) == 0 ? caches_ : nodes_;
        where.push_back(std::make_unique<Tensor>(type, op, name, n0, n1, n2, data));
        where.back()->ne[3] = n3;
        return where.back().get();
    }
    template <class T>
    struct Typed {
        std::vector<T> data;
    };
    template <class T>
    std::vector<T> & memory(size_t n) {
        auto typed = std::make_shared<Typed<T>>();
        typed->data.resize(n);
        memory_.push_back(typed);
        return typed->data;
    }

    const int n_streams_;
    const bool flash_;
    std::vector<std::vector<float>> k_, v_;
    std::vector<ggml_tensor *> cache_k_, cache_v_;
    std::vector<std::unique_ptr<Tensor>> caches_, nodes_;
    std::vector<std::shared_ptr<void>> memory_;
};
