// A model with random weights and no vocabulary, as a GGUF file (version 3), little-endian as every machine here is.
#pragma once

#include "check.hpp"

#include <cstring>
#include <string>

class TinyGguf {
  public:
    static constexpr int VOCABULARY = 96, LAYERS = 2, HEADS = 4, KV_HEADS = 2, HEAD_SIZE = 32, EMBEDDING = 64;

    // A Llama of the sizes above, of as many layers.
    static void write(const std::string & file, int layers = LAYERS) {
        TinyGguf out;
        out.text("general.architecture", "llama");
        out.text("tokenizer.ggml.model", "none");
        out.integer("llama.vocab_size", VOCABULARY);
        out.integer("llama.context_length", 512);
        out.integer("llama.embedding_length", EMBEDDING);
        out.integer("llama.block_count", uint32_t(layers));
        out.integer("llama.feed_forward_length", FEED_FORWARD);
        out.integer("llama.attention.head_count", HEADS);
        out.integer("llama.attention.head_count_kv", KV_HEADS);
        out.integer("llama.attention.key_length", HEAD_SIZE);
        out.integer("llama.attention.value_length", HEAD_SIZE);
        out.integer("llama.rope.dimension_count", HEAD_SIZE);
        out.real("llama.attention.layer_norm_rms_epsilon", 1e-5f);
        out.real("llama.rope.freq_base", 10000);
        out.tensor("token_embd.weight", {EMBEDDING, VOCABULARY});
        out.tensor("output_norm.weight", {EMBEDDING});
        out.tensor("output.weight", {EMBEDDING, VOCABULARY});
        for (int layer = 0; layer < layers; layer++) {
            const std::string block = "blk." + std::to_string(layer) + ".";
            out.tensor(block + "attn_norm.weight", {EMBEDDING});
            out.tensor(block + "attn_q.weight", {EMBEDDING, HEADS * HEAD_SIZE});
            out.tensor(block + "attn_k.weight", {EMBEDDING, KV_HEADS * HEAD_SIZE});
            out.tensor(block + "attn_v.weight", {EMBEDDING, KV_HEADS * HEAD_SIZE});
            out.tensor(block + "attn_output.weight", {HEADS * HEAD_SIZE, EMBEDDING});
            out.tensor(block + "ffn_norm.weight", {EMBEDDING});
            out.tensor(block + "ffn_gate.weight", {EMBEDDING, FEED_FORWARD});
            out.tensor(block + "ffn_up.weight", {EMBEDDING, FEED_FORWARD});
            out.tensor(block + "ffn_down.weight", {FEED_FORWARD, EMBEDDING});
        }
        out.save(file);
    }

  private:
    static constexpr int FEED_FORWARD = 96;
    static constexpr uint32_t UINT32 = 4, FLOAT32 = 6, STRING = 8; // types of metadata
    static constexpr size_t ALIGNMENT = 32;

    template <class T>
    static void put(std::string & to, T value) {
        char bytes[sizeof value];
        std::memcpy(bytes, &value, sizeof value);
        to.append(bytes, sizeof value);
    }
    static void put_string(std::string & to, const std::string & s) {
        put(to, uint64_t(s.size()));
        to += s;
    }
    static void align(std::string & to) { to.append((ALIGNMENT - to.size() % ALIGNMENT) % ALIGNMENT, '\0'); }

    void key(const std::string & name, uint32_t type) {
        keys_++;
        put_string(metadata_, name);
        put(metadata_, type);
    }
    void text(const std::string & name, const std::string & value) {
        key(name, STRING);
        put_string(metadata_, value);
    }
    void integer(const std::string & name, uint32_t value) {
        key(name, UINT32);
        put(metadata_, value);
    }
    void real(const std::string & name, float value) {
        key(name, FLOAT32);
        put(metadata_, value);
    }

    // F32: norms are near 1, the rest is scaled so that activations stay so.
    void tensor(const std::string & name, const std::vector<uint64_t> & shape) {
        tensors_++;
        put_string(infos_, name);
        put(infos_, uint32_t(shape.size()));
        size_t n = 1;
        for (const uint64_t size : shape) {
            put(infos_, size);
            n *= size;
        }
        put(infos_, uint32_t(0));
        put(infos_, uint64_t(data_.size()));
        for (size_t i = 0; i < n; i++) {
            const float x = random_.normal();
            put(data_, shape.size() == 1 ? 1.5f + 0.2f * x : x / std::sqrt(float(shape[0])));
        }
        align(data_);
    }

    void save(const std::string & file) {
        std::string all = "GGUF";
        put(all, uint32_t(3));
        put(all, tensors_);
        put(all, keys_);
        all += metadata_ + infos_;
        align(all);
        all += data_;
        std::FILE * const f = std::fopen(file.c_str(), "wb");
        CHECK(f && std::fwrite(all.data(), 1, all.size(), f) == all.size() && std::fclose(f) == 0);
    }

    std::string metadata_, infos_, data_;
    uint64_t tensors_ = 0, keys_ = 0;
    Random random_{1};
};
