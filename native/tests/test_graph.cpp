// What is read from llama.cpp's graph and what is refused there, on graphs made by hand.
#include "fake_graph.hpp"
#include "isa.hpp"
#include "llama_graph.hpp"
#include "observer.hpp"

namespace {

// The block's error is this.
void check_refused(kvmerge_observer * o, kvmerge_status status, const char * why) {
    kvmerge_block_stats stats;
    const kvmerge_status found = kvmerge_observer_stats(o, &stats);
    if (found != status || !std::strstr(kvmerge_last_error(), why)) {
        std::printf("%s\n", kvmerge_last_error());
    }
    CHECK(found == status && std::strstr(kvmerge_last_error(), why));
}

void ask(kvmerge_observer * o, ggml_tensor & node) {
    kvmerge_eval_callback(&node, true, o);
}

// Keys as they are before they are made rows of: [head_dim][heads][tokens], with a view of them that is written.
struct Heads {
    Tensor heads, rows;
    Heads(ggml_op op, int64_t dim, int64_t n)
        : heads(GGML_TYPE_F32, op, "Kcur", dim, n, Fixture::TOKENS, nullptr),
          rows(GGML_TYPE_F32, GGML_OP_VIEW, "", dim * n, Fixture::TOKENS, 1, nullptr) {
        rows.src[0] = &heads;
    }
};

void set_rope(ggml_tensor & t, int n_dims, int mode, int first = 0) {
    const float values[] = {10000, 1, 0, 1, 32, 1}; // base, scale, YaRN's mix, magnitude, ramp
    t.op_params[1] = n_dims, t.op_params[2] = mode, t.op_params[4] = 512, t.op_params[15] = first;
    std::memcpy(&t.op_params[5], values, sizeof values);
}

// A host's own callback may ask for any node and pass it on.
void test_foreign_nodes() {
    const int32_t layers[] = {3};
    for (const bool chosen : {false, true}) {
        auto params = params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_FOLDED);
        params.layers = chosen ? layers : nullptr;
        kvmerge_observer * o = make(params);
        Fixture other(true, "0"), f(true, chosen ? "3" : "0");
        Tensor unknown(GGML_TYPE_F32, GGML_OP_MUL_MAT, "ffn_out-0", 4, 4, 1, nullptr);
        Tensor flash(GGML_TYPE_F32, GGML_OP_FLASH_ATTN_EXT, "", 4, 2, 3, nullptr);
        for (ggml_tensor * node : {(ggml_tensor *)&unknown, (ggml_tensor *)&flash, (ggml_tensor *)&other.kq,
                                   (ggml_tensor *)&other.soft_max, (ggml_tensor *)&other.k_write}) {
            CHECK(kvmerge_eval_callback(node, false, o)); // nothing was asked, and the graph goes on
        }
        f.decode(o);
        CHECK(kvmerge_eval_callback(&f.soft_max, false, o)); // a second time: its attention is not added twice
        kvmerge_block_stats s;
        CHECK(kvmerge_observer_stats(o, &s) == KVMERGE_OK);
        CHECK(s.n_layer_seen == 1);
        CHECK_NEAR(s.mass[0], 2 * (1 + 0.5 + 1.0 / 3), 1e-6, 0);
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
}

void test_layers_that_differ() {
    auto params = params_for(KVMERGE_OBSERVE_CELLS, KVMERGE_BIAS_NONE);
    params.n_layer = 2;
    { // the same row of other heads
        kvmerge_observer * o = make(params);
        Fixture first(true, "0"), second(true, "1");
        Heads two(GGML_OP_ROPE, 2, 2);
        second.k_write.src[0] = &two.rows;
        first.decode(o);
        second.decode(o);
        check_refused(o, KVMERGE_E_UNSUPPORTED, "layer 1 has 2 KV heads of 2 where 1 were expected");
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    for (const bool key : {true, false}) { // rows of other lengths
        kvmerge_observer * o = make(params);
        Fixture first(true, "0"), second(true, "1");
        (key ? second.cache_k : second.cache_v).ne[0] = 8;
        first.decode(o);
        second.decode(o);
        check_refused(o, KVMERGE_E_UNSUPPORTED,
                      key ? "layer 1: K heads of 8 elements where the first layer's have 4"
                          : "layer 1: V heads of 8 elements where the first layer's have 4");
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    { // transposed values, padded to the largest layer's
        kvmerge_observer * o = make(params);
        Fixture f;
        Tensor heads(GGML_TYPE_F32, GGML_OP_MUL_MAT, "Vcur", 2, 1, 3, nullptr),
            flat(GGML_TYPE_F32, GGML_OP_CONT, "", 2, 3, 1, nullptr);
        Tensor padded(GGML_TYPE_F32, GGML_OP_PAD, "", 4, 3, 1, nullptr),
            rows(GGML_TYPE_F32, GGML_OP_RESHAPE, "", 1, 12, 1, nullptr);
        rows.src[0] = &padded, padded.src[0] = &flat, flat.src[0] = &heads;
        f.v_write.src[0] = &rows;
        f.decode(o);
        check_refused(o, KVMERGE_E_UNSUPPORTED, "layer 0: V cells of 4 elements for 1 KV heads, padded");
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    { // query heads
        kvmerge_observer * o = make(params);
        Fixture f;
        f.queries.ne[2] = 4;
        f.decode(o);
        check_refused(o, KVMERGE_E_UNSUPPORTED, "layer 0 has 4 query heads of 4 where 2 of 4 were expected");
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    { // keys of another layer
        kvmerge_observer * o = make(params);
        Fixture first(true, "0"), second(true, "1");
        first.decode(o);
        ask(o, second.kq);
        check_refused(o, KVMERGE_E_UNSUPPORTED, "layer 1 keeps no keys");
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
}

// The first graph has no write of keys: its attention may not decide how large the arrays are (found by the fuzzer: the
// moments of the next graph's queries went into arrays of no elements).
void test_attention_before_keys() {
    kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_MASS | KVMERGE_OBSERVE_QUERIES, KVMERGE_BIAS_NONE));
    Fixture f;
    CHECK(!kvmerge_eval_callback(&f.soft_max, true, o));
    check_refused(o, KVMERGE_E_UNSUPPORTED, "layer 0 keeps no keys");
    CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
    for (int i = 0; i < 2; i++) { // the second begin adds the queries that wait
        f.decode(o);
        kvmerge_block_stats stats;
        CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_OK);
        CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
    }
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// Keys of an unrotated part and a rotated one behind it, shared by all heads, as MLA has them.
void test_rotated_parts() {
    const auto rotation_of = [](int mode, bool rotated_first, bool both, kvmerge_key_rotation & r, double * freq) {
        Fixture f;
        kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_CELLS, KVMERGE_BIAS_NONE));
        Heads key(GGML_OP_CONCAT, 4, 1);
        Tensor still(GGML_TYPE_F32, GGML_OP_VIEW, "k_nope", 2, 1, 3, nullptr),
            kv(GGML_TYPE_F32, GGML_OP_MUL_MAT, "kv", 4, 3, 1, nullptr);
        Tensor rope(GGML_TYPE_F32, GGML_OP_ROPE, "k_pe", 2, 1, 3, nullptr),
            repeat(GGML_TYPE_F32, GGML_OP_REPEAT, "", 2, 1, 3, nullptr);
        set_rope(rope, 2, mode);
        still.src[0] = both ? (ggml_tensor *)&rope : &kv;
        repeat.src[0] = &rope;
        key.heads.src[0] = rotated_first ? &repeat : &still;
        key.heads.src[1] = rotated_first ? &still : &repeat;
        f.k_write.src[0] = &key.rows;
        f.decode(o);
        kvmerge_block_stats stats;
        const kvmerge_status status = kvmerge_observer_stats(o, &stats);
        if (status == KVMERGE_OK) {
            CHECK(kvmerge_rotation(o, 0, &r, freq) == KVMERGE_OK);
        }
        const std::string why = status == KVMERGE_OK ? "" : kvmerge_last_error();
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
        return why;
    };
    kvmerge_key_rotation r;
    double freq[2];
    CHECK(rotation_of(0, false, false, r, freq).empty());
    CHECK(r.n_rot == 4 && r.neox == 0 && freq[0] == 0 && freq[1] == 1);
    CHECK(rotation_of(GGML_ROPE_TYPE_NEOX, true, false, r, freq).empty());
    CHECK(r.n_rot == 2 && r.neox == 1 && freq[0] == 1);
    CHECK(rotation_of(GGML_ROPE_TYPE_NEOX, false, false, r, freq).find("in NEOX order") != std::string::npos);
    CHECK(rotation_of(0, false, true, r, freq).find("the keys change after") != std::string::npos);
}

// A node that rotates from a dimension on.
void test_rope_offset() {
    Fixture f;
    kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_CELLS, KVMERGE_BIAS_NONE));
    Heads key(GGML_OP_ROPE, 4, 1);
    set_rope(key.heads, 2, 0, 2);
    f.k_write.src[0] = &key.rows;
    f.decode(o);
    kvmerge_key_rotation r;
    double freq[2];
    CHECK(kvmerge_rotation(o, 0, &r, freq) == KVMERGE_OK);
    CHECK(r.n_rot == 4 && freq[0] == 0 && freq[1] == 1);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// llama.cpp's shift of positions: a rotation, and with YaRN a longer key each time.
void test_shift() {
    for (const float magnitude : {1.0f, 1.14f}) {
        for (const bool quantised : {false, true}) {
            Fixture f;
            kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_CELLS, KVMERGE_BIAS_NONE));
            f.decode(o);
            Tensor rope(GGML_TYPE_F32, GGML_OP_ROPE, "", 4, 8, 1, f.k.data()),
                copy(GGML_TYPE_F32, GGML_OP_CPY, "", 4, 8, 1, f.k.data());
            set_rope(rope, 4, 0);
            std::memcpy(&rope.op_params[8], &magnitude, sizeof magnitude);
            rope.view_src = quantised ? nullptr : &f.cache_k;
            copy.view_src = &f.cache_k, copy.src[0] = &rope;
            CHECK(!kvmerge_eval_callback(quantised ? &copy : &rope, true, o));
            kvmerge_block_stats stats;
            if (magnitude == 1) {
                CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_OK);
            } else {
                check_refused(o, KVMERGE_E_UNSUPPORTED, "multiplies all keys by YaRN's factor, 1.140");
            }
            CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
        }
    }
}

// Scores with a soft cap: scale, tanh, scale.
void test_soft_cap() {
    for (const int bias : {KVMERGE_BIAS_FOLDED, KVMERGE_BIAS_EXACT}) {
        Fixture f;
        kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_MASS, bias));
        Tensor down(GGML_TYPE_F32, GGML_OP_SCALE, "kq_scaled_1-0", 8, 3, 2, nullptr),
            tanh(GGML_TYPE_F32, GGML_OP_UNARY, "kq_tanh-0", 8, 3, 2, nullptr),
            up(GGML_TYPE_F32, GGML_OP_SCALE, "kq_scaled_2-0", 8, 3, 2, f.p.data());
        const float less = 1.0f / 50, more = 100;
        std::memcpy(down.op_params, &less, sizeof less), std::memcpy(up.op_params, &more, sizeof more);
        tanh.op_params[0] = GGML_UNARY_OP_TANH;
        f.soft_max.src[0] = &up, up.src[0] = &tanh, tanh.src[0] = &down, down.src[0] = &f.kq;
        f.decode(o);
        if (bias == KVMERGE_BIAS_EXACT) {
            check_refused(o, KVMERGE_E_UNSUPPORTED,
                          "layer 0: an exact bias would be added before the scores' soft cap");
        } else {
            kvmerge_block_stats stats;
            CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_OK && stats.n_layer_seen == 1);
            float scale = 0;
            const auto look = [&](const kvmerge_observer & inside) { scale = inside.layers[0].scale; };
            CHECK(kvmerge::on_observer("test", o, kvmerge::Access::ALONE, look) == KVMERGE_OK);
            CHECK(scale == 0.5f * 2); // of small scores: what a folded bias is divided by
        }
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
        // 0.5 * (100 * tanh(score / 50)) is what scores from captured queries have to become.
        const kvmerge::Attention capped = kvmerge::attention_of(&f.soft_max, 0);
        CHECK(capped.known && capped.cap == 50 && capped.scale == 1 && capped.changed && !capped.in_place);
        CHECK(capped.queries == &f.queries && capped.keys == &f.cache_k);
        const float more_than_that = 3;
        std::memcpy(up.op_params + 1, &more_than_that, sizeof more_than_that);
        CHECK(!kvmerge::attention_of(&f.soft_max, 0).known); // something is added
        up.op_params[1] = 0, tanh.op_params[0] = GGML_UNARY_OP_RELU;
        CHECK(!kvmerge::attention_of(&f.soft_max, 0).known); // another function
    }
    Fixture f; // a bias of positions, say
    kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE));
    Tensor sum(GGML_TYPE_F32, GGML_OP_ADD, "kq_plus_kq_b-0", 8, 3, 2, nullptr);
    f.soft_max.src[0] = &sum, sum.src[0] = &f.kq;
    f.decode(o);
    check_refused(o, KVMERGE_E_UNSUPPORTED, "layer 0: scores that something is added to before the softmax");
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// Two sequences in one cache: a batch of both, and one after the other.
void test_several_sequences() {
    std::vector<float> hidden(Fixture::CELLS * Fixture::TOKENS, -INFINITY);
    Tensor mask(GGML_TYPE_F32, GGML_OP_NONE, "mask", Fixture::CELLS, Fixture::TOKENS, 1, hidden.data());
    const auto show = [&](int row, std::initializer_list<int> cells) {
        for (int c : cells) {
            hidden[size_t(row * Fixture::CELLS + c)] = 0;
        }
    };
    {
        show(0, {0}), show(1, {1}), show(2, {0, 2}); // tokens 0 and 2 are of one sequence, token 1 of another
        Fixture f;
        f.soft_max.src[1] = &mask;
        kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE));
        f.decode(o);
        check_refused(o, KVMERGE_E_UNSUPPORTED, "several sequences are not handled");
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
    show(1, {0, 1}), show(2, {1});
    Fixture f;
    f.soft_max.src[1] = &mask;
    kvmerge_observer * o = make(params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_NONE));
    f.decode(o);
    const auto k = f.k;
    CHECK(MoveArrays().apply(o) == KVMERGE_OK); // cells 0, 1 and 2: the newest token sees them
    MoveArrays moves;
    moves.target[5] = moves.dest[5] = 5;
    CHECK(moves.apply(o) == KVMERGE_E_ARGUMENT);
    CHECK(std::strstr(kvmerge_last_error(), "cell 5: the newest token does not see it"));
    CHECK(f.k == k);
    MoveArrays into;
    into.dest[0] = 5; // of the other sequence
    CHECK(into.apply(o) == KVMERGE_E_ARGUMENT);
    CHECK(std::strstr(kvmerge_last_error(), "cell 0: the newest token does not see its destination"));
    CHECK(f.k == k);
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

// Another context, whose tensors come to lie where the first one's lay.
void test_another_context() {
    auto params = params_for(KVMERGE_OBSERVE_MASS, KVMERGE_BIAS_FOLDED);
    kvmerge_observer * o = make(params);
    Fixture f;
    f.decode(o);
    std::vector<float> keys(6 * Fixture::DIM);
    f.cache_k.data = keys.data(), f.cache_k.ne[1] = 6;
    for (int block = 0; block < 2; block++) { // for good
        CHECK(kvmerge_observer_begin(o) == KVMERGE_OK);
        f.decode(o);
        check_refused(o, KVMERGE_E_STATE, "layer 0: this is another llama_context's cache");
        f.cache_k.data = f.k.data(), f.cache_k.ne[1] = 8;
    }
    CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
}

void test_sinks() {
    Fixture f(false);
    Tensor node(GGML_TYPE_F32, GGML_OP_FLASH_ATTN_EXT, "", 4, 2, 3, nullptr),
        keys(GGML_TYPE_F32, GGML_OP_PERMUTE, "", 4, 8, 1, f.k.data()),
        sinks(GGML_TYPE_F32, GGML_OP_NONE, "sinks", 2, 1, 1, nullptr);
    keys.view_src = &f.cache_k;
    node.src[0] = &f.queries, node.src[1] = &keys, node.src[4] = &sinks;
    for (const int observe : {KVMERGE_OBSERVE_MASS, KVMERGE_OBSERVE_ENTROPY, KVMERGE_OBSERVE_CELLS}) {
        kvmerge_observer * o = make(params_for(observe, KVMERGE_BIAS_NONE));
        ask(o, f.k_write);
        ask(o, f.v_write);
        ask(o, node);
        kvmerge_block_stats stats;
        if (observe == KVMERGE_OBSERVE_CELLS) {
            CHECK(kvmerge_observer_stats(o, &stats) == KVMERGE_OK);
        } else {
            check_refused(o, KVMERGE_E_UNSUPPORTED, "layer 0: flash attention with sinks is not observed");
        }
        CHECK(kvmerge_observer_free(o) == KVMERGE_OK);
    }
}

} // namespace

int main() {
    skip_without_isa();
    test_foreign_nodes();
    test_layers_that_differ();
    test_attention_before_keys();
    test_rotated_parts();
    test_rope_offset();
    test_shift();
    test_soft_cap();
    test_several_sequences();
    test_another_context();
    test_sinks();
    std::printf("ok\n");
}
