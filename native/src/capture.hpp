// Queries seen without stopping llama.cpp's graph: before it runs, a node of it that computes nothing is turned into a
// copy of a layer's queries to memory of ours. They are looked at when the block is full.
//
// The node is the view of the queries that attention permutes (build_attn_mha in llama.cpp's src/llama-graph.cpp). The
// permutation is a view of the same root, so nothing reads the node's own data. A reused graph comes with its nodes as
// they were left: each copy is made a view again when llama.cpp asks for it, and captured anew if it is still wanted.
//
// A node of several streams is copied whole. Its streams' blocks begin at different times, so each stream takes its
// part from there before the next ubatch runs.
#pragma once

#include "backend_memory.hpp"
#include "device.hpp"
#include "llama_graph.hpp"

#include "ggml.h"

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace kvmerge {

// Whether a node is a copy that capture() made. A copy has no parameters, so there is room for a mark.
bool is_capture(const ggml_tensor * node);
// The view that nothing reads under the queries of an attention node, [head_dim][heads][tokens][parts]; null where they
// come another way.
ggml_tensor * view_of_queries(const ggml_tensor * queries);
// The copy that capture() has made of that view, or null.
ggml_tensor * copy_of_queries(const ggml_tensor * queries);
// Where a layer's queries go.
struct QuerySlot {
    float * to = nullptr;                   // null: nowhere
    ggml_backend_buffer * buffer = nullptr; // of memory that only the backend reaches
};
// Turns the view into a copy of the queries, [parts][tokens][heads][head_dim], to memory of the view's backend.
void capture(ggml_tensor * view, const QuerySlot & slot);
// Makes a copy the view again that it was. Needs no observer: it may be gone.
void release(ggml_tensor * node);

// The queries of a ubatch of several streams, [n_layer][rows][row]: on the host, or each layer's on its GPU. Those in
// other backends' memory are brought to the host for all streams at once.
struct Staging {
    size_t layer_size = 0;
    std::vector<float> memory;
    struct Far {
        BackendMemory memory;
        bool coming = false; // what the graph leaves there has yet to be brought
    };
    std::vector<Far> far; // [n_layer]
    std::mutex bringing;  // streams take their parts on threads of their own
    bool refused = false; // a backend has no room
    void next_ubatch() {
        for (Far & f : far) {
            f.coming = false;
        }
    }
    size_t device_size = 0; // elements of a layer's on a GPU
    std::vector<DeviceArray<float>> on_gpu;
    size_t bytes() const;
    float * at(int layer) { return memory.data() + size_t(layer) * layer_size; }
    // Makes room for a layer's queries in the memory of a tensor's backend. False where there is none.
    bool reserve_far(int layer, const kvmerge_ggml & ggml, const ggml_tensor * near);
    void bring(int layer) noexcept;
    // Makes room for layers of `size` elements on GPUs. Nothing may wait there.
    void reserve_on_gpu(int n_layer, size_t size) {
        if (size > device_size) {
            on_gpu.clear();
            device_size = size;
        }
        on_gpu.resize(size_t(n_layer));
    }
    float * at_on_gpu(const Device & device, int layer, const void * near) {
        DeviceArray<float> & a = on_gpu[size_t(layer)];
        if (a.size() == 0) {
            a = DeviceArray<float>(device, device_size, near);
        }
        return a.data();
    }
};

// Which tokens of a block were captured. A row is a query's token; rows are in the order of the block.
struct CapturedRows {
    // A ubatch's rows. Few are added to the moments of the queries, of many some.
    struct Ubatch {
        int first, n_rows;
    };
    int n = 0;
    int first_token = 0;   // in the block, of row 0
    int first_of_mass = 0; // the rows before count for entropies alone
    std::vector<Ubatch> ubatches;
    bool follows(const Ubatch & next) const { return n == 0 || next.first == first_token + n; }
    // Adds a ubatch, given by its first token in the block. False where tokens before it were not captured.
    bool add(const Ubatch & next, int mass_queries);
};

// The queries of a block that the statistics have yet to get, and the cells that each of them sees: of layers that the
// host looks at. Where llama.cpp computes on the host, the graph leaves them in place. Where it computes elsewhere, it
// leaves them in memory of its backend, and a layer's are brought once, when they are looked at.
class Captured {
  public:
    // For blocks of up to `n_tokens` tokens whose queries have `row` elements.
    void prepare(const kvmerge_ggml & ggml, int n_layer, int n_tokens, int row, int n_cells);

    // A ubatch of tokens `first_token`... of the block has begun; nothing of it is captured yet.
    void next_ubatch(int first_token, int n_rows, const Part & part) {
        take();
        next_ = {first_token, n_rows};
        part_ = part;
        known_.clear();
        begun_ = false;
    }
    // Where a layer's queries of this ubatch are to go, or nowhere: its earlier rows or what it sees are not the
    // others', or there is no memory for them. The mask is read, of a ubatch once for each backend: it must be set.
    // `far`: a tensor of the layer's backend where that is not the host. mass_queries: as in kvmerge_observer_params.
    // With several parts, the queries of all go to `staging`, and it says where.
    QuerySlot slot(int layer, const ggml_tensor * far, const ggml_tensor * mask, int n_kv, int mass_queries,
                   const std::shared_ptr<Staging> & staging);
    // Takes what the graph has left in `staging`, which the next one may write over.
    void take() noexcept;
    // Brings what lies elsewhere: before queries() and missing().
    void bring() noexcept;
    // Whether a row sees a cell that is about to be written: then the statistics have to come first.
    bool sees(const std::vector<int64_t> & cells) const;
    // Whether the masks have grown so large that the statistics had better come now.
    bool large() const { return masks_.size() >= LARGE_MASKS; }
    void clear();

    const CapturedRows & rows() const { return rows_; }
    int n_rows(int layer) const { return size_t(layer) < layers_.size() ? layers_[size_t(layer)].n_rows : 0; }
    int n_cells() const { return n_cells_; } // 1 + the last cell that a row sees
    const float * queries(int layer) const { return layers_[size_t(layer)].queries.data(); }
    const uint16_t * masks() const { return masks_.data(); } // [row][stride of masks], half precision
    int mask_stride() const { return most_cells_; }
    const float * inv_log_visible() const { return inv_log_visible_.data(); } // [row]
    // The first token of the block whose queries never came to a layer's slot, or -1: decoding was cut short, or
    // llama.cpp ran past the node before it was a copy.
    int missing(int layer) const;
    size_t bytes() const;
    // What the ubatch's last row sees, [cell]: where layers are captured in it.
    const uint16_t * newest() const { return masks_.data() + size_t(rows_.n - 1) * size_t(most_cells_); }

  private:
    static constexpr size_t LARGE_MASKS = size_t(1) << 25; // elements: 64 MiB
    struct Layer {
        std::vector<float> queries; // [n_tokens][row]
        int n_rows = 0;
        const float * staged = nullptr; // where the last ubatch's rows still are
        BackendMemory far;              // [n_tokens][row], where the graph leaves them
        int far_from = 0, far_to = 0;   // the rows that have to be brought from there
        bool refused = false;           // the backend has no room
    };
    void bring(Layer & l) noexcept;
    QuerySlot place(int layer, int first, const ggml_tensor * far, Staging * staging);
    std::vector<char> read(const ggml_tensor * mask, int n_kv) const;
    void add_masks(const ggml_tensor * mask, int n_kv);
    bool sees_the_same(const ggml_tensor * mask, int n_kv);

    const kvmerge_ggml * ggml_ = nullptr;
    int row_ = 0, n_tokens_ = 0, most_cells_ = 0;
    std::vector<Layer> layers_;
    CapturedRows::Ubatch next_{0, 0};        // the current one, by its first token in the block
    Part part_;                              // of it
    std::shared_ptr<Staging> staging_;       // of it, while rows are there
    std::vector<const ggml_tensor *> known_; // masks of the current ubatch: llama.cpp has a copy for each backend
    bool begun_ = false;                     // the current ubatch is among the rows
    CapturedRows rows_;
    int n_cells_ = 0;
    std::vector<uint16_t> masks_;
    std::vector<char> seen_; // [cell]: by any row
    std::vector<float> inv_log_visible_;
};

} // namespace kvmerge
