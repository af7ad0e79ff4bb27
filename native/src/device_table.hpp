// The columns of a cache's table in a GPU's memory, where its layers' cells lie: blocks are added there, plans are made
// and checked there, and cells are rewritten from them. CellTable keeps the rest, and says which cells are in use.
#pragma once

#include "device.hpp"
#include "observer.hpp"
#include "table.hpp"

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace kvmerge {

class DeviceTable {
  public:
    // Whether all that the table is about lies on GPUs. Statistics that are on the host, fates and exact biases want
    // the columns on the host.
    static bool suits(const kvmerge_observer & o, const kvmerge_cache_params & params);

    // Takes all memory that blocks and rewritings need. Throws MEMORY, DEVICE. calibration: [pair][stride], or empty.
    DeviceTable(const kvmerge_observer & o, const kvmerge_cache_params & params, const CellTable & table,
                const std::vector<float> & calibration);

    int64_t bytes() const { return bytes_; } // on the devices, and pinned

    // Adds a block that `table` is about to add: in the observer's arrays, what its cells received.
    void add(kvmerge_observer & o, const CellTable & table, const CellTable::Block & block, int first_position,
             int first_frame);
    // Plans all pairs by the default strategy. now: the position of the newest token and 1.
    void plan(kvmerge_observer & o, const CellTable & table, int now);
    bool is_planned() const { return planned_; }
    // Begins a rewriting: what plan() made is forgotten.
    void forget_plans() { planned_ = false; }
    void forget(); // all

    // Checks the plans, and makes of them lists of groups. The one time in a block that the host waits. Throws what is
    // wrong with the plans, or with the attention that was added; nothing is written yet.
    void stage(CellTable & table);
    // Whether some of a layer's groups have biases that are folded, by what stage() has found.
    bool has_biases(const kvmerge_observer & o, int layer) const;
    // Has the cells rewritten and the columns moved, and does not wait for it. directions: of each layer that has
    // biases, [n_head_kv][dim], there.
    void commit(kvmerge_observer & o, const CellTable & table, const std::vector<const float *> & directions);

    // Brings the columns to the host, if the copy there is old. On any thread.
    void fetch(CellTable & table);
    // Replaces the columns by those on the host.
    void replace(const CellTable & table);

  private:
    // The layers on one GPU. They follow each other.
    struct Part {
        int first_layer, n_layers;
        TableRows rows;
        DeviceArray<int32_t> ints, target, dest, start, lists;
        DeviceArray<int32_t> tokens; // [2][n_tokens]: a block's cells, and where the keys in them are rotated to
        DeviceArray<float> floats, weight, value_weight, calibration, projected, shares, inverse_scale, scratch;
        DeviceArray<double> rate, expected, cost;
        DeviceArray<uint8_t> stays;
        DeviceArray<const float *> mass, entropy;
        DeviceArray<int32_t> flaw;
        DeviceArray<Verdict> verdict;
        const void * near;
    };

    void merge(kvmerge_observer & o, Part & part, const std::vector<const float *> & directions);
    void project(kvmerge_observer & o, Part & part, int n);
    void upload_constants(const kvmerge_observer & o, Part & part);
    int room_for(int used, int over, bool back) const;
    void make_room(const kvmerge_observer & o, Part & part);
    StageHeadsArgs lists(Part & part, const CellTable & table);
    void upload_plans(Part & part, const CellTable::Staged & staged);
    void require_all_done(int lost_before) const;
    template <class Body>
    void each_column(Part & part, CellTable::Columns & columns, Body && body);
    template <class T>
    void need(DeviceArray<T> & array, size_t n, const Part & part);

    const Device * device_;
    const kvmerge_cache_params params_;
    const CellTable::Shape shape_;
    const int calibration_stride_; // 0: none
    std::vector<Part> parts_;
    SharedArray<Verdict> verdicts_; // by pair
    int64_t bytes_ = 0;
    int room_ = 0; // in the lists of a head
    bool planned_ = false;
    bool fresh_ = true; // the copy on the host is
    std::mutex fetching_;
};

} // namespace kvmerge
