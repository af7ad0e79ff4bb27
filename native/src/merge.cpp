// kvmerge_apply: carries out moves on the cells.
#include "merge.hpp"
#include "cell_access.hpp"
#include "device.hpp"
#include "observer.hpp"
#include "parallel.hpp"
#include "status.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

namespace {

using namespace kvmerge;

// The moves of all heads that one device handles, head after head in flat arrays. Each array goes to the device in one
// piece.
struct Work {
    struct Head {
        int layer, kv_head;
        size_t first_group, first_member; // indices into the arrays; `start` has one element more for each head
        int n_groups;
        bool merges; // it has a group of two or more
    };
    std::vector<Head> heads;
    std::vector<int32_t> start, member, delta, dest;
    std::vector<float> weight, value_weight, bias;
};

[[noreturn]] void refuse(int layer, int head, int cell, const char * what) {
    throw Error(KVMERGE_E_ARGUMENT, text("layer %d, KV head %d, cell %d: %s", layer, head, cell, what));
}

// How many positions the key of cell c is rotated by when it goes into the group of pivot p. `first` is where the head
// starts in the arrays.
int64_t rotation_of(const kvmerge_moves & moves, size_t first, int c, int p) {
    const int64_t pivot = moves.position[first + size_t(p)];
    const int64_t to_pivot = moves.pivot_frame ? pivot - moves.position[first + size_t(c)] : 0;
    return to_pivot + (moves.new_position ? moves.new_position[first + size_t(p)] - pivot : 0);
}

// Checks the moves of one head. `taken` holds, of each cell, the layer's last head that goes there. Throws ARGUMENT.
void check(const kvmerge_observer & o, const kvmerge_moves & moves, int layer, int head, std::vector<int32_t> & taken) {
    const int n = o.params.n_cells;
    const size_t first = o.head_index(layer, head) * n;
    const int32_t * target = moves.target + first;
    const int32_t * dest = moves.dest + first;
    const float * weight = moves.weight + first;
    std::vector<double> sum(n, 0.0);
    for (int c = 0; c < n; c++) {
        const int p = target[c];
        if (p == -1) {
            continue;
        }
        if (c >= o.layers[layer].k.n_cells()) { // the observer may have been made for more cells than the context has
            refuse(layer, head, c, "it is outside the cache");
        }
        if (!o.is_of_sequence(c)) {
            refuse(layer, head, c, "the newest token does not see it: it is empty, or another sequence's");
        }
        if (p < 0 || p >= n) {
            refuse(layer, head, c, "its target is outside the cache");
        }
        if (target[p] != p) {
            refuse(layer, head, c, "its target is not a pivot");
        }
        if (!(weight[c] >= 0) || !std::isfinite(weight[c])) {
            refuse(layer, head, c, "its weight is negative or not finite");
        }
        if (moves.value_weight && !std::isfinite(moves.value_weight[first + size_t(c)])) {
            refuse(layer, head, c, "its value's weight is not finite");
        }
        if (const int64_t way = rotation_of(moves, first, c, p); way > INT32_MAX || way < -INT32_MAX) {
            refuse(layer, head, c, "the position that its key goes to is more than 2^31 - 1 away");
        }
        sum[p] += weight[c];
        if (c == p) {
            if (dest[c] < 0 || dest[c] >= o.layers[layer].k.n_cells()) {
                refuse(layer, head, c, "its destination is outside the cache");
            }
            if (!o.is_of_sequence(dest[c])) {
                refuse(layer, head, c,
                       "the newest token does not see its destination: it is empty, or another "
                       "sequence's");
            }
            if (taken[dest[c]] == head) {
                refuse(layer, head, c, "its destination is taken by another group");
            }
            taken[dest[c]] = head;
        }
    }
    for (int c = 0; c < n; c++) {
        if (target[c] == c && std::fabs(sum[c] - 1) > 1e-3) {
            refuse(layer, head, c, "the weights of its group do not sum to 1");
        }
    }
}

// How many members the group of each pivot has, by the pivot's cell.
std::vector<int32_t> group_sizes(const int32_t * target, int n) {
    std::vector<int32_t> members(n, 0);
    for (int c = 0; c < n; c++) {
        if (target[c] >= 0) {
            members[target[c]]++;
        }
    }
    return members;
}

// What a weight adds to the entropy of its group's weights, H(w) = sum of -w log w.
double entropy_term(double w) {
    return w > 0 ? -w * std::log(w) : 0;
}

// Adds the groups of a head that have more than one member, a new cell or a new position.
void add_head(Work & work, const kvmerge_observer & o, const kvmerge_moves & moves, int layer, int kv_head) {
    const int n = o.params.n_cells;
    const size_t first = o.head_index(layer, kv_head) * n;
    const int32_t *target = moves.target + first, *dest = moves.dest + first;
    const float * weight = moves.weight + first;
    const std::vector<int32_t> members = group_sizes(target, n);
    Work::Head head = {layer, kv_head, work.dest.size(), work.member.size(), 0, false};
    std::vector<int32_t> group(n, -1); // the number of each pivot's group
    std::vector<size_t> next;          // where the next member of each group goes
    int32_t total = 0;
    for (int c = 0; c < n; c++) {
        if (target[c] == c && (members[c] > 1 || dest[c] != c || rotation_of(moves, first, c, c) != 0)) {
            group[c] = head.n_groups++;
            next.push_back(head.first_member + size_t(total));
            work.start.push_back(total);
            work.dest.push_back(dest[c]);
            work.bias.push_back(0);
            total += members[c];
            head.merges |= members[c] > 1;
        }
    }
    if (head.n_groups == 0) {
        return;
    }
    work.start.push_back(total);
    const size_t all = head.first_member + size_t(total);
    work.member.resize(all);
    work.delta.resize(all);
    work.weight.resize(all);
    work.value_weight.resize(all);
    const float inverse = o.params.bias == KVMERGE_BIAS_FOLDED ? 1 / o.layers[layer].scale : 0.0f;
    for (int c = 0; c < n; c++) {
        const int p = target[c];
        if (p < 0 || group[p] < 0) {
            continue;
        }
        const bool alone = members[p] == 1;
        const size_t m = next[size_t(group[p])]++;
        work.member[m] = c;
        work.weight[m] = alone ? 1.0f : weight[c];
        work.value_weight[m] = moves.value_weight && !alone ? moves.value_weight[first + size_t(c)] : work.weight[m];
        work.delta[m] = int32_t(rotation_of(moves, first, c, p));
        if (!alone) {
            work.bias[head.first_group + size_t(group[p])] += float(entropy_term(weight[c])) * inverse;
        }
    }
    work.heads.push_back(head);
}

Error not_finite(int layer) {
    return Error(KVMERGE_E_NUMERIC, text("layer %d: the queries have NaN or infinite elements", layer));
}

// The directions that a layer's biases are folded along: [n_head_kv][dim], on the device that handles its cells.
DeviceArray<float> fold_directions(kvmerge_observer & o, int layer) {
    auto & l = o.layers[layer];
    const Device &there = *l.stats_device, &here = l.k.device();
    const void * const near = l.k.tensor()->data;
    const int dim = l.k.dim();
    const size_t n = size_t(o.params.n_head_kv) * dim;
    std::vector<float> copy(n);
    const auto require_finite_queries = [&](const DeviceArray<float> & x) {
        x.download(copy.data(), n);
        check(there);
        if (!std::all_of(copy.begin(), copy.end(), [](float x) { return std::isfinite(x); })) {
            throw not_finite(layer);
        }
    };
    require_finite_queries(l.query_sum);
    DeviceArray<float> u(there, n, l.query_sum.data());
    there.fold_direction({l.query_sum.data(), l.query_second.data(), o.params.n_head_kv, dim, 1 / l.query_weight,
                          o.params.ridge, u.data()});
    require_finite_queries(u);
    if (&there == &here) {
        return u;
    }
    // Attention and cells are on different devices where the cells of a layer stay on the host.
    DeviceArray<float> moved(here, n, near);
    moved.upload(copy.data(), n);
    return moved;
}

// The moves that one device carries out, on one GPU if it has several. Its constructor does all that can be refused or
// lack memory, before any cell is written.
class Rewrite {
  public:
    Rewrite(kvmerge_observer & o, Work && work, const Device & device)
        : work_(std::move(work)), device_(&device), directions_(o) {
        if (work_.heads.empty()) {
            return;
        }
        near_ = o.layers[work_.heads[0].layer].k.tensor()->data;
        std::vector<int32_t> all; // in one piece: every copy to a GPU costs microseconds
        const auto put = [&](const auto & x) {
            const size_t at = all.size();
            all.resize(at + x.size());
            std::copy_n(reinterpret_cast<const int32_t *>(x.data()), x.size(), all.data() + at);
            return at;
        };
        const size_t start = put(work_.start), member = put(work_.member), delta = put(work_.delta),
                     dest = put(work_.dest), weight = put(work_.weight), value_weight = put(work_.value_weight),
                     bias = put(work_.bias);
        arrays_ = DeviceArray<int32_t>(device, all.size(), near_);
        arrays_.upload(all.data(), all.size());
        const int32_t * const ints = arrays_.data();
        const float * const floats = reinterpret_cast<const float *>(ints);
        for (const Work::Head & h : work_.heads) {
            auto & l = o.layers[h.layer];
            const bool folds = h.merges && o.params.bias == KVMERGE_BIAS_FOLDED;
            const size_t start_of = h.first_group + heads_.size(); // `start` has one element more for each head before
            heads_.push_back({l.k.on_device(), l.v.on_device(), h.kv_head, h.n_groups, ints + start + start_of,
                              ints + member + h.first_member, ints + delta + h.first_member,
                              floats + weight + h.first_member, floats + value_weight + h.first_member,
                              ints + dest + h.first_group, folds ? floats + bias + h.first_group : nullptr,
                              folds ? directions_.of(h.layer) + size_t(h.kv_head) * l.k.dim() : nullptr, nullptr,
                              l.rope.n_rot, l.rope.neox, l.rope.freq.data(), l.rope.hadamard});
            scratch_size_ += size_t(h.n_groups) * (l.k.dim() + l.v.dim());
        }
    }

    // How many elements of scratch run() needs, in the memory where near() lies.
    size_t scratch_size() const { return scratch_size_; }
    const void * near() const { return near_; }

    // Rewrites all of its layers at once, which a GPU does in one launch.
    void run(kvmerge_observer & o, float * scratch) {
        if (heads_.empty()) {
            return;
        }
        for (const Work::Head & h : work_.heads) {
            forget(o.layers[h.layer], h.kv_head, work_.dest.data() + h.first_group, size_t(h.n_groups));
        }
        for (MergeHead & h : heads_) {
            h.scratch = scratch;
            scratch += size_t(h.n_groups) * (h.k.dim + h.v.dim);
        }
        device_->merge_cells({heads_.data(), int(heads_.size())});
    }

    // Uploads cells that were rewritten in a copy on the host.
    void finish(kvmerge_observer & o) const {
        for (size_t i = 0; i < work_.heads.size(); i++) {
            if (i == 0 || work_.heads[i].layer != work_.heads[i - 1].layer) {
                o.layers[work_.heads[i].layer].k.written();
                o.layers[work_.heads[i].layer].v.written();
            }
        }
    }

  private:
    Work work_;
    const Device * device_;
    const void * near_ = nullptr;
    DeviceArray<int32_t> arrays_; // those of work_, one after the other; floats are as wide
    Directions directions_;
    std::vector<MergeHead> heads_;
    size_t scratch_size_ = 0;
};

// Scratch memory for as many threads as run at once.
class Scratch {
  public:
    Scratch(int n_threads, size_t size) {
        for (int i = 0; i < n_threads; i++) {
            free_.emplace_back(host_device(), size, nullptr);
        }
    }
    template <class Body>
    void with(Body && body) {
        const Borrowed borrowed(*this);
        body(borrowed.memory.data());
    }

  private:
    struct Borrowed {
        Scratch & from;
        DeviceArray<float> memory;
        explicit Borrowed(Scratch & from) : from(from) {
            const std::lock_guard<std::mutex> lock(from.mutex_);
            memory = std::move(from.free_.back());
            from.free_.pop_back();
        }
        ~Borrowed() {
            const std::lock_guard<std::mutex> lock(from.mutex_);
            from.free_.push_back(std::move(memory)); // there was room for it before
        }
    };
    std::mutex mutex_;
    std::vector<DeviceArray<float>> free_;
};

// The rewriting of all layers. The host handles those that the device cannot reach. K and V of a layer lie together.
std::vector<Rewrite> rewrites_of(kvmerge_observer & o, const kvmerge_moves & moves) {
    const auto add_layer = [&](Work & work, int layer, const Device & device) {
        for (int head = 0; head < o.params.n_head_kv && &o.layers[layer].k.device() == &device; head++) {
            add_head(work, o, moves, layer, head);
        }
    };
    for (auto & l : o.layers) { // copies from a backend are made one after the other
        l.k.on_device(), l.v.on_device();
    }
    std::vector<std::optional<Rewrite>> by_layer(o.layers.size());
    parallel_for(o.params.n_layer, o.params.n_threads, [&](int64_t layer) {
        Work work;
        add_layer(work, int(layer), host_device());
        by_layer[size_t(layer)].emplace(o, std::move(work), host_device());
    });
    std::vector<Rewrite> all;
    for (auto & one : by_layer) {
        all.push_back(std::move(*one));
    }
    std::map<int, Work> by_gpu;
    for (int layer = 0; layer < o.params.n_layer && o.device != &host_device(); layer++) {
        const CellTensor & k = o.layers[layer].k;
        if (&k.device() == o.device) {
            add_layer(by_gpu[o.device->place(k.tensor()->data)], layer, *o.device);
        }
    }
    for (auto & [gpu, work] : by_gpu) {
        all.emplace_back(o, std::move(work), *o.device);
    }
    return all;
}

// Exact biases move with the cells: b' = sum w_i b_i + H(w).
void move_biases(const kvmerge_observer & o, const kvmerge_moves & moves, int layer, int head,
                 std::vector<float> & moved) {
    const int n = o.params.n_cells;
    const size_t first = o.head_index(layer, head) * n;
    const int32_t * target = moves.target + first;
    const std::vector<int32_t> members = group_sizes(target, n);
    for (int c = 0; c < n; c++) {
        if (target[c] >= 0) {
            const double w = members[target[c]] == 1 ? 1.0 : moves.weight[first + c];
            const double before = o.bias.empty() ? 0 : o.bias[first + c];
            moved[first + size_t(moves.dest[first + target[c]])] += float(w * before + entropy_term(w));
        }
    }
}

std::vector<float> moved_biases(const kvmerge_observer & o, const kvmerge_moves & moves) {
    std::vector<float> moved;
    if (o.params.bias == KVMERGE_BIAS_EXACT) {
        moved.resize(o.head_index(o.params.n_layer, 0) * o.params.n_cells);
        for (int layer = 0; layer < o.params.n_layer; layer++) {
            for (int head = 0; head < o.params.n_head_kv; head++) {
                move_biases(o, moves, layer, head, moved);
            }
        }
    }
    return moved;
}

} // namespace

void kvmerge::prepare_to_rewrite(kvmerge_observer & o) {
    o.add_captured(); // with the keys as they are
    if (o.params.bias == KVMERGE_BIAS_FOLDED) {
        o.add_waiting_queries();
        if (o.fold_on_gpu()) { // nobody asked for the block's statistics
            check(*o.device);
        }
    }
    for (int layer = 0; layer < o.params.n_layer && o.params.bias != KVMERGE_BIAS_NONE; layer++) {
        if (o.params.bias == KVMERGE_BIAS_FOLDED && !(o.layers[layer].query_weight > 0)) {
            throw Error(KVMERGE_E_STATE, text("layer %d: no queries observed yet to fold a bias along", layer));
        }
        if (!(o.layers[layer].scale > 0)) {
            throw Error(KVMERGE_E_STATE, text("layer %d: no attention seen yet that a bias could be scaled to", layer));
        }
    }
}

const float * kvmerge::Directions::of(int layer) {
    const auto & l = o_.layers[size_t(layer)];
    if (!l.direction_known || &l.k.device() != l.stats_device) {
        if (made_[size_t(layer)].size() == 0) {
            made_[size_t(layer)] = fold_directions(o_, layer);
        }
        return made_[size_t(layer)].data();
    }
    if (!std::all_of(l.direction_on_host.data(), l.direction_on_host.data() + l.direction_on_host.size(),
                     [](float x) { return std::isfinite(x); })) {
        throw not_finite(layer);
    }
    return l.direction.data();
}

extern "C" kvmerge_status kvmerge_apply(kvmerge_observer * observer, const kvmerge_moves * moves) {
    return on_observer("kvmerge_apply", observer, Access::ALONE, [&](kvmerge_observer & o) {
        require(moves && moves->target && moves->weight && moves->position && moves->dest,
                "the moves or one of their arrays is null");
        require_whole(o);
        o.finish_rewriting();
        o.look_at_newest();
        parallel_for(o.params.n_layer, o.params.n_threads, [&](int64_t layer) {
            require_cache(o, int(layer));
            std::vector<int32_t> taken(o.params.n_cells, -1);
            for (int head = 0; head < o.params.n_head_kv; head++) {
                check(o, *moves, int(layer), head, taken);
            }
        });
        prepare_to_rewrite(o);
        std::vector<Rewrite> rewrites = rewrites_of(o, *moves);
        std::vector<float> biases = moved_biases(o, *moves);
        const auto host_end = rewrites.begin() + o.params.n_layer;
        size_t largest = 0;
        std::for_each(rewrites.begin(), host_end,
                      [&](const Rewrite & r) { largest = std::max(largest, r.scratch_size()); });
        Scratch scratch(std::min(o.params.n_threads, o.params.n_layer), largest);
        std::vector<DeviceArray<float>> elsewhere; // on each GPU
        std::for_each(host_end, rewrites.end(), [&](const Rewrite & r) {
            elsewhere.push_back(r.near() ? DeviceArray<float>(*o.device, r.scratch_size(), r.near())
                                         : DeviceArray<float>());
        });

        Writing writing(o);
        parallel_for(o.params.n_layer, o.params.n_threads,
                     [&](int64_t layer) { scratch.with([&](float * mine) { rewrites[size_t(layer)].run(o, mine); }); });
        for (auto r = host_end; r != rewrites.end(); r++) {
            r->run(o, elsewhere[size_t(r - host_end)].data());
        }
        kvmerge::check(*o.device);           // before llama.cpp goes on
        for (const Rewrite & r : rewrites) { // copies to a backend are made one after the other
            r.finish(o);
        }
        o.bias.swap(biases);
        o.any_bias = std::any_of(o.bias.begin(), o.bias.end(), [](float b) { return b != 0; });
        writing.done();
    });
}
