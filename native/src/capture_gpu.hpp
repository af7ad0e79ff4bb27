// Queries captured in the memory of GPUs: collected there without a stop, a copy to the host or a wait.
//
// The node that copies a token's queries always writes to the same place, a layer's `waiting` row: ggml's CUDA graphs
// are made anew when an address changes, and given up when that happens often. So a generation's queries wait there
// until the next token's graph is about to run. Then one launch for each GPU brings those of all its layers to the
// block's, and keeps the new token's mask. A prompt's ubatches are copied to their place in the block directly.
//
// Kernels run on a stream of our own. llama.cpp has waited for its streams whenever it asks about a node, but it does
// not wait for ours: what is queued must be done before a graph runs. settle() sees to that at the last layer of a GPU,
// when it mostly is.
#pragma once

#include "capture.hpp"
#include "device.hpp"

#include <cstdint>
#include <memory>
#include <vector>

namespace kvmerge {

class GpuCapture {
  public:
    void prepare(const Device & device, int n_layer, int n_tokens, int row, int n_cells);
    // A ubatch of tokens `first_token`... of the block has begun; nothing of it is captured yet.
    void next_ubatch(int first_token, int n_rows, const Part & part);
    // Where a layer's queries of this ubatch are to go, as Captured::slot. `queries` lie on the layer's GPU.
    float * slot(int layer, const ggml_tensor * queries, const ggml_tensor * mask, int n_kv, int mass_queries,
                 const std::shared_ptr<Staging> & staging);
    // Takes what the graph has left in the staging.
    void take();
    // Brings to the host what the newest token of the last ubatch sees; null where nothing is captured.
    const uint8_t * look();
    bool sees(const std::vector<int64_t> & cells); // whether a row sees a cell that is about to be written
    bool has_room(int n_rows) const { return rows_.n == 0 || rows_.n + n_rows <= capacity_; }
    // Some of the graph runs before all of it was asked about: from now on nothing is left to time.
    void distrust_time() {
        at_once_ = true;
        settle();
    }
    // What is queued on all GPUs is done when it returns: their memory is about to be used by others.
    void settle() const;
    void clear();

    // Before the statistics: all rows are where queries() says, and those that never came are zero. missing() knows
    // which, once the device has finished.
    void check();
    int missing(int layer) const; // as Captured::missing
    void forget_missing();
    size_t bytes() const; // on the devices, and on the host what grows with tokens and cells

    const CapturedRows & rows() const { return rows_; }
    int n_rows(int layer) const { return size_t(layer) < layers_.size() ? layers_[size_t(layer)].n_rows : 0; }
    int n_cells() const { return n_cells_; } // 1 + the last cell that a row may see
    const float * queries(int layer) const { return layers_[size_t(layer)].queries.data(); }
    const uint16_t * masks(int layer) const { return places_[size_t(layers_[size_t(layer)].place)].masks.data(); }
    int mask_stride() const { return most_cells_; }
    const float * inv_log_visible(int layer) const {
        return places_[size_t(layers_[size_t(layer)].place)].inv_log_visible.data();
    }

  private:
    struct Layer {
        int place = -1;             // index in places_
        DeviceArray<float> queries; // [capacity + 1][row]; the last row is the one that waits
        int n_rows = 0;             // those that wait among them
        int waiting = 0;            // of them
        const float * staged = nullptr;
    };
    struct Place { // a GPU
        int number = 0;
        std::vector<int> layers; // in the order of the graph
        DeviceArray<uint16_t> masks;
        DeviceArray<float> inv_log_visible;
        bool begun = false; // the current ubatch has
        const void * mask = nullptr;
    };
    static constexpr int ENOUGH_ROWS = 512;                // of a block at once, where ubatches are not larger
    static constexpr size_t LARGE_MASKS = size_t(1) << 25; // elements of a GPU's
    bool is_staged() const { return part_.of > 1; }
    bool waits() const { return part_.of == 1 && next_.n_rows == 1; }
    float * waiting_row(const Layer & l) const { return l.queries.data() + size_t(capacity_) * size_t(row_); }
    void reserve(int n_rows);
    float * target(int layer, int first, Staging * staging, const void * near);
    void move(const std::vector<const float *> & from, const std::vector<float *> & to, std::ptrdiff_t n) const;
    void collect(Place & place, const std::vector<int> & layers, const ggml_tensor * mask, int n_kv, Staging * staging);

    const Device * device_ = nullptr;
    int n_tokens_ = 0, row_ = 0, most_cells_ = 0, capacity_ = 0;
    std::vector<Layer> layers_;
    std::vector<Place> places_;
    CapturedRows rows_;
    CapturedRows::Ubatch next_{0, 0};
    Part part_;
    std::shared_ptr<Staging> staging_; // of the current ubatch, while rows are there
    bool begun_ = false, at_once_ = false, looked_ = true;
    int n_cells_ = 0;
    std::vector<char> seen_;       // [cell]: by any row
    SharedArray<uint8_t> newest_;  // [cell]: by the last row of the last ubatch
    SharedArray<int32_t> missing_; // [n_layer]
};

} // namespace kvmerge
