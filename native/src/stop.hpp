// A stop: the end of a piece of llama.cpp's graph, where kernels look at a node's data before the graph goes on.
#pragma once

#include "cells.hpp"
#include "device.hpp"
#include "parallel.hpp"

#include <cstdint>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

namespace kvmerge {

// A part of a node's data where a device can read it: in place, or a copy on the host.
class NodeData {
  public:
    NodeData(const ggml_tensor * t, const Device & device, const kvmerge_ggml & ggml, const Part & part)
        : offset_(part.offset(t)) {
        if (&device == &host_device() && !is_host(t, ggml)) {
            copy_ = download(t, ggml, part);
            data_ = copy_.data();
        } else {
            data_ = static_cast<char *>(t->data) + offset_;
        }
    }
    template <class T>
    T * as(size_t offset = 0) {
        return reinterpret_cast<T *>(static_cast<char *>(data_) + offset);
    }
    // Uploads the copy, if there is one.
    void write_back(ggml_tensor * t, const kvmerge_ggml & ggml) const {
        if (data_ == copy_.data()) {
            ggml.tensor_set(t, copy_.data(), offset_, copy_.size());
        }
    }

  private:
    size_t offset_;
    std::vector<char> copy_;
    void * data_ = nullptr;
};

// The arguments with the mass and entropy of one KV head.
template <class Args>
Args stats_of(Args a, int64_t h) {
    a.n_kv_heads = 1;
    a.mass = a.mass ? a.mass + h * a.mass_stride : nullptr;
    a.entropy = a.entropy ? a.entropy + h * a.heads_per_kv * a.entropy_stride : nullptr;
    return a;
}

// The part of a kernel's work that is for KV head h.
inline AttentionStatsArgs slice(AttentionStatsArgs a, int64_t h) {
    a.p += h * a.heads_per_kv * a.head_stride;
    return stats_of(a, h);
}

inline ScoreStatsArgs slice(ScoreStatsArgs a, int64_t h) {
    a.q += h * a.heads_per_kv * a.head_stride;
    a.first_kv_head += int(h);
    return stats_of(a, h);
}

inline QueryMomentsArgs slice(QueryMomentsArgs a, int64_t h) {
    a.q += h * a.heads_per_kv * a.head_stride;
    a.n_kv_heads = 1;
    a.sum += h * a.dim;
    a.second += h * a.dim * a.dim;
    return a;
}

inline int64_t operations(const AttentionStatsArgs & a) {
    return int64_t(a.n_kv_heads) * a.heads_per_kv * a.n_rows * a.n_cells;
}

inline int64_t operations(const ScoreStatsArgs & a) {
    return int64_t(a.n_kv_heads) * a.heads_per_kv * a.n_rows * a.n_cells * a.keys.dim;
}

inline int64_t operations(const QueryMomentsArgs & a) {
    return int64_t(a.n_kv_heads) * a.heads_per_kv * a.n_rows * a.dim * a.dim / 2;
}

// The kernels to run at one stop of the graph. None needs another's results. The host runs them one KV head at a time,
// on several threads if there is enough to do. A GPU takes all KV heads at once.
class Stop {
  public:
    template <class Args>
    void add(const Device & device, void (*Device::*kernel)(const Args &), const Args & all) {
        constexpr int64_t WORTH_THREADS = 1 << 23; // fewer are done before two threads have started
        if (&device != &host_device() || operations(all) < WORTH_THREADS) {
            runs_.push_back([&device, kernel, all] { (device.*kernel)(all); });
            return;
        }
        sliced_ = true;
        for (int h = 0; h < all.n_kv_heads; h++) {
            runs_.push_back([&device, kernel, a = slice(all, h)] { (device.*kernel)(a); });
        }
    }
    // Keeps what a kernel reads until all have run.
    NodeData & keep(NodeData data) { return data_.emplace_back(std::move(data)); }
    void run(int n_threads) {
        parallel_for(int64_t(runs_.size()), sliced_ ? n_threads : 1, [&](int64_t i) { runs_[size_t(i)](); });
    }

  private:
    std::vector<std::function<void()>> runs_;
    std::deque<NodeData> data_;
    bool sliced_ = false;
};

} // namespace kvmerge
