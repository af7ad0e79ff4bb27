#include "streams.hpp"

#include "llama_graph.hpp"
#include "observer.hpp"
#include "status.hpp"

#include <algorithm>
#include <new>

namespace kvmerge {

// Calls body(observer) if this thread may enter it. Throws what the body does.
template <class Body>
bool Streams::with(int stream, Body && body) const {
    kvmerge_observer * const handle = handles_[size_t(stream)];
    const Handles<kvmerge_observer>::Use use(observers(), handle, Access::ALONE);
    if (use.status() != KVMERGE_OK) {
        observers().miss(handle);
        settle_devices(); // as kvmerge_eval_callback does
        return false;
    }
    body(use.object());
    return true;
}

bool Streams::called(ggml_tensor * node, bool ask) noexcept {
    if (!ask) {
        const bool ours = node == asked_for_; // else the host's own callback asked for this node
        asked_for_ = nullptr;
        for (const int stream : members_) {
            with(stream, [&](kvmerge_observer & o) {
                if (!ours || o.asked_for == node) {
                    o.called(node, false);
                }
            });
        }
        return true;
    }
    const GraphNode seen = classify(node);
    if (seen.kind == NodeKind::OTHER) {
        return false;
    }
    if (seen.kind == NodeKind::KEY_WRITE && seen.layer == layers_.front()) {
        begin_ubatch(node);
    }
    bool stop = false;
    const auto ask_one = [&](int stream) { with(stream, [&](kvmerge_observer & o) { stop |= o.called(node, true); }); };
    const bool watched = std::binary_search(layers_.begin(), layers_.end(), seen.layer);
    if (seen.kind == NodeKind::KEY_SHIFT || !watched) { // of all streams, or before it is known of which
        for (int stream = 0; stream < size(); stream++) {
            ask_one(stream);
        }
    } else {
        for (const int stream : members_) {
            ask_one(stream);
        }
    }
    asked_for_ = stop ? node : nullptr;
    return stop;
}

// At the first layer's keys: finds out which streams the ubatch is of.
void Streams::begin_ubatch(const ggml_tensor * write) noexcept {
    members_.clear();
    bool elsewhere = false;
    for (int stream = 0; stream < size(); stream++) {
        with(stream, [&](kvmerge_observer & o) noexcept {
            o.captured.take(); // before this graph writes over it
            try {
                o.captured_on_gpu.take();
            } catch (...) {
                o.fail(o.out_of_memory);
            }
            o.staging.reset();
            o.share_of_staging = staging_bytes() / handles_.size();
            elsewhere |= o.another_context || (o.layers[0].k.tensor() && !o.layers[0].k.is_of(write->view_src));
        });
    }
    const auto fail_all = [&](kvmerge_status status, const char * what) noexcept {
        members_.clear();
        for (int stream = 0; stream < size(); stream++) {
            with(stream, [&](kvmerge_observer & o) {
                o.another_context |= elsewhere;
                try {
                    o.fail(Error(status, what)); // with a text of its own
                } catch (...) {
                    o.fail(o.out_of_memory);
                }
                members_.push_back(stream);
            });
        }
    };
    try {
        if (elsewhere) {
            throw another_context(0);
        }
        share_out(write);
    } catch (const Error & e) {
        fail_all(e.status, e.what());
    } catch (const std::bad_alloc &) {
        fail_all(KVMERGE_E_MEMORY, "out of memory");
    }
}

void Streams::share_out(const ggml_tensor * write) {
    const ggml_tensor * const cache = write->view_src;
    check_streams(cache, size(), 0, "K");
    const std::vector<int64_t> rows = rows_written(write, ggml_);
    const int64_t n_cells = cache->ne[1], n_rows = int64_t(rows.size());
    for (const int64_t row : rows) {
        require(row >= 0 && n_cells > 0 && row / n_cells < size(), "a token was written to a cell outside the cache");
    }
    const int first = int(rows.front() / n_cells), parts = int(rows.back() / n_cells) - first + 1;
    const int64_t each = parts > 0 ? n_rows / parts : 0;
    for (int64_t i = 0; i < n_rows; i++) {
        if (each == 0 || n_rows % parts != 0 || rows[size_t(i)] / n_cells != first + i / each) {
            throw Error(KVMERGE_E_UNSUPPORTED, "a ubatch that is not of as many tokens of each of a run of streams: "
                                               "this llama.cpp splits batches in another way");
        }
    }
    if (parts > 1 && (!staging_ || staging_.use_count() > 1)) { // a stream that missed this ubatch has not taken its
        staging_ = std::make_shared<Staging>();                 // queries
    }
    if (parts > 1) {
        staging_->next_ubatch();
    }
    for (int part = 0; part < parts; part++) {
        const bool entered = with(first + part, [&](kvmerge_observer & o) {
            o.part = {part, parts};
            o.staging = parts > 1 ? staging_ : nullptr;
            o.written.clear();
            for (int64_t i = part * each; i < (part + 1) * each; i++) {
                o.written.push_back(rows[size_t(i)] % n_cells);
            }
        });
        if (entered) {
            members_.push_back(first + part);
        }
    }
}

} // namespace kvmerge
