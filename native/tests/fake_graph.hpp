// A graph made by hand: tensors as llama.cpp names and lays them out, without llama.cpp.
#pragma once

#include "check.hpp"
#include "kvmerge.h"

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <cstring>
#include <set>
#include <string>
#include <vector>

// Stand-ins for ggml's entry points, for memory of the host and for memory that only they can reach: there,
// pointers are off by REMOTE, and whoever follows one crashes.
inline bool on_host = true;
inline bool on_gpu = false; // memory that ggml says is not the host's, and the shim's device can follow pointers to
inline constexpr std::ptrdiff_t REMOTE = std::ptrdiff_t(1) << 50;
inline char * memory_of(const ggml_tensor * t) {
    return static_cast<char *>(t->data) - (on_host ? 0 : REMOTE);
}
inline void tensor_get(const ggml_tensor * t, void * data, size_t offset, size_t size) {
    std::memcpy(data, memory_of(t) + offset, size);
}
inline void tensor_set(ggml_tensor * t, const void * data, size_t offset, size_t size) {
    std::memcpy(memory_of(t) + offset, data, size);
}
inline bool buffer_is_host(ggml_backend_buffer_t) {
    return on_host && !on_gpu;
}

// Memory that a backend gives, out of reach as well.
struct FakeBuffer {
    std::vector<char> bytes;
};
inline int backend_room = INT32_MAX; // buffers that it still gives
inline int backend_buffers = 0;      // that are alive
inline kvmerge_ggml fake_ggml() {
    kvmerge_ggml g = {};
    g.tensor_get = tensor_get;
    g.tensor_set = tensor_set;
    g.buffer_is_host = buffer_is_host;
    g.buffer_get_type = [](ggml_backend_buffer_t) {
        static char type;
        return reinterpret_cast<ggml_backend_buffer_type_t>(&type);
    };
    g.buft_alloc_buffer = [](ggml_backend_buffer_type_t, size_t size) -> ggml_backend_buffer_t {
        if (backend_room == 0) {
            return nullptr;
        }
        backend_room--;
        backend_buffers++;
        return reinterpret_cast<ggml_backend_buffer_t>(new FakeBuffer{std::vector<char>(size)});
    };
    g.buffer_get_base = [](ggml_backend_buffer_t b) -> void * {
        return reinterpret_cast<FakeBuffer *>(b)->bytes.data() + (on_host ? 0 : REMOTE);
    };
    g.buffer_clear = [](ggml_backend_buffer_t b, uint8_t value) {
        std::vector<char> & bytes = reinterpret_cast<FakeBuffer *>(b)->bytes;
        std::fill(bytes.begin(), bytes.end(), char(value));
    };
    g.buffer_free = [](ggml_backend_buffer_t b) {
        backend_buffers--;
        delete reinterpret_cast<FakeBuffer *>(b);
    };
    return g;
}

struct Tensor : ggml_tensor {
    inline static std::set<Tensor *> all;
    bool remote = false;
    Tensor(ggml_type t, ggml_op o, const std::string & name, int64_t n0, int64_t n1, int64_t n2, void * memory)
        : ggml_tensor() {
        type = t;
        op = o;
        std::snprintf(this->name, sizeof this->name, "%s", name.c_str());
        const size_t size = t == GGML_TYPE_F32 ? 4 : t == GGML_TYPE_F16 ? 2 : 8;
        ne[0] = n0, ne[1] = n1, ne[2] = n2, ne[3] = 1;
        nb[0] = size, nb[1] = size * n0, nb[2] = nb[1] * n1, nb[3] = nb[2] * n2;
        data = memory;
        buffer = reinterpret_cast<ggml_backend_buffer_t>(this); // only ever handed to buffer_is_host
        all.insert(this);
    }
    ~Tensor() { all.erase(this); }
    Tensor(const Tensor &) = delete;
    // Moves every tensor's memory out of reach, where it is not the host's.
    static void place() {
        for (Tensor * t : all) {
            if (!on_host && !t->remote) {
                t->data = static_cast<char *>(t->data) + REMOTE;
                t->remote = true;
            }
        }
    }
};
// One layer, two query heads on one KV head, dimension 4, 8 cells, F32; three tokens in cells 0, 1, 2.
struct Fixture {
    static constexpr int DIM = 4, CELLS = 8, TOKENS = 3, HEADS = 2;
    std::vector<float> k, v, q, scores, p;
    std::vector<int64_t> rows{0, 1, 2}, element_rows;
    Tensor cache_k, cache_v, index, v_index, plain_key, k_write, v_write, queries, kq, soft_max;

    Fixture(bool transposed = true, const std::string & layer = "0")
        : k(DIM * CELLS), v(DIM * CELLS), q(DIM * TOKENS * HEADS), scores(CELLS * TOKENS * HEADS),
          p(CELLS * TOKENS * HEADS), element_rows(DIM * TOKENS),
          cache_k(GGML_TYPE_F32, GGML_OP_NONE, "cache_k_l" + layer, DIM, CELLS, 1, k.data()),
          cache_v(GGML_TYPE_F32, GGML_OP_NONE, "cache_v_l" + layer, DIM, CELLS, 1, v.data()),
          index(GGML_TYPE_I64, GGML_OP_NONE, "rows", TOKENS, 1, 1, rows.data()),
          v_index(GGML_TYPE_I64, GGML_OP_NONE, "v_rows", DIM * TOKENS, 1, 1, element_rows.data()),
          plain_key(GGML_TYPE_F32, GGML_OP_MUL_MAT, "Kcur-0", DIM, TOKENS, 1, k.data()),
          k_write(GGML_TYPE_F32, GGML_OP_SET_ROWS, "", DIM, CELLS, 1, k.data()),
          v_write(GGML_TYPE_F32, GGML_OP_SET_ROWS, "", transposed ? 1 : DIM, transposed ? DIM * CELLS : CELLS, 1,
                  v.data()),
          queries(GGML_TYPE_F32, GGML_OP_PERMUTE, "q", DIM, TOKENS, HEADS, q.data()),
          kq(GGML_TYPE_F32, GGML_OP_MUL_MAT, "kq-" + layer, CELLS, TOKENS, HEADS, scores.data()),
          soft_max(GGML_TYPE_F32, GGML_OP_SOFT_MAX, "kq_soft_max-" + layer, CELLS, TOKENS, HEADS, p.data()) {
        Random random(3);
        k = random.normals(k.size());
        v = random.normals(v.size());
        q = random.normals(q.size());
        cache_k.data = k.data();
        cache_v.data = v.data();
        queries.data = q.data();
        k_write.view_src = &cache_k;
        k_write.src[0] = &plain_key;
        k_write.src[1] = &index;
        v_write.view_src = &cache_v;
        v_write.src[1] = transposed ? &v_index : &index;
        kq.src[0] = &cache_k;
        kq.src[1] = &queries;
        soft_max.src[0] = &kq;
        const float scale = 0.5f;
        std::memcpy(soft_max.op_params, &scale, sizeof scale);
        for (int h = 0; h < HEADS; h++) { // causal and uniform: token t sees cells 0..t alike
            for (int t = 0; t < TOKENS; t++) {
                for (int c = 0; c <= t; c++) {
                    p[(h * TOKENS + t) * CELLS + c] = 1.0f / float(t + 1);
                }
            }
        }
    }

    int stops = 0; // of the last decode

    void decode(kvmerge_observer * o) {
        Tensor::place();
        stops = 0;
        for (ggml_tensor * node :
             {(ggml_tensor *)&k_write, (ggml_tensor *)&v_write, (ggml_tensor *)&kq, (ggml_tensor *)&soft_max}) {
            if (kvmerge_eval_callback(node, true, o)) {
                stops++;
                CHECK(kvmerge_eval_callback(node, false, o));
            }
        }
    }
};

inline kvmerge_observer_params params_for(int observe, int bias) {
    kvmerge_observer_params p = {};
    p.n_layer = 1;
    p.n_head = Fixture::HEADS;
    p.n_head_kv = 1;
    p.n_cells = Fixture::CELLS;
    p.n_tokens = 16;
    p.observe = observe;
    p.bias = bias;
    p.mass_power = 1;
    p.query_decay = 0.7f;
    p.ridge = 0.05f;
    p.device = KVMERGE_DEVICE_CPU;
    p.n_threads = 2;
    p.ggml = fake_ggml();
    return p;
}

inline kvmerge_observer * make(const kvmerge_observer_params & params) {
    kvmerge_observer * o = nullptr;
    CHECK(kvmerge_observer_create(&params, &o) == KVMERGE_OK);
    CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
    return o;
}

struct MoveArrays {
    std::vector<int32_t> target = std::vector<int32_t>(Fixture::CELLS, -1),
                         position = std::vector<int32_t>(Fixture::CELLS, 0),
                         dest = std::vector<int32_t>(Fixture::CELLS, 0);
    std::vector<float> weight = std::vector<float>(Fixture::CELLS, 1.0f);
    MoveArrays() {
        for (int c = 0; c < 3; c++) {
            target[c] = dest[c] = position[c] = c;
        }
    }
    kvmerge_status apply(kvmerge_observer * o) {
        const kvmerge_moves moves = {target.data(), weight.data(), nullptr, position.data(), dest.data(), nullptr, 1};
        return kvmerge_apply(o, &moves);
    }
};
