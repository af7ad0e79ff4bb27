// Rewriting cells by a plan.
#include "device.hpp"
#include "observer.hpp"
#include "parallel.hpp"
#include "status.hpp"

#include <algorithm>
#include <cmath>

namespace {

using namespace kvmerge;

// What a plan asks of all heads that one device handles, head after head in flat arrays that go to the device in one piece each.
struct Work {
    struct Head {
        int layer, kv_head;
        size_t first_group, first_member; // into the arrays; starts are one longer a head
        int n_groups;
        bool merges; // has a group of two and more
    };
    std::vector<Head> heads;
    std::vector<int32_t> start, member, delta, dest;
    std::vector<float> weight, value_weight, bias;
};

[[noreturn]] void refuse(int layer, int head, int cell, const char * what) {
    throw Error(KVMERGE_E_ARGUMENT, text("layer %d, KV head %d, cell %d: %s", layer, head, cell, what));
}

void require_cache(const kvmerge_observer & o, int layer) {
    if (!o.layers[layer].k.tensor() || !o.layers[layer].v.tensor()) {
        throw Error(KVMERGE_E_STATE, text("layer %d: no KV cache seen; decode something first", layer));
    }
}

// Checks one head of the plan; `taken` holds, of each cell, the layer's last head that goes there. Throws ARGUMENT.
void check(const kvmerge_observer & o, const kvmerge_plan & plan, int layer, int head, std::vector<int32_t> & taken) {
    const int n = o.params.n_cells;
    const size_t first = o.head_index(layer, head) * n;
    const int32_t * target = plan.target + first;
    const int32_t * dest = plan.dest + first;
    const float * weight = plan.weight + first;
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
        if (plan.value_weight && !std::isfinite(plan.value_weight[first + size_t(c)])) {
            refuse(layer, head, c, "its value's weight is not finite");
        }
        sum[p] += weight[c];
        if (c == p) {
            if (dest[c] < 0 || dest[c] >= o.layers[layer].k.n_cells()) {
                refuse(layer, head, c, "its destination is outside the cache");
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

// Members of each pivot's group, by the pivot's cell.
std::vector<int32_t> group_sizes(const int32_t * target, int n) {
    std::vector<int32_t> members(n, 0);
    for (int c = 0; c < n; c++) {
        if (target[c] >= 0) {
            members[target[c]]++;
        }
    }
    return members;
}

// A weight's share of the entropy of its group's weights, H(w) = sum of -w log w.
double entropy_term(double w) {
    return w > 0 ? -w * std::log(w) : 0;
}

// Adds a head's groups that have work to do: more than one member, or a new cell.
void add_head(Work & work, const kvmerge_observer & o, const kvmerge_plan & plan, int layer, int kv_head) {
    const int n = o.params.n_cells;
    const size_t first = o.head_index(layer, kv_head) * n;
    const int32_t *target = plan.target + first, *position = plan.position + first, *dest = plan.dest + first;
    const float * weight = plan.weight + first;
    const std::vector<int32_t> members = group_sizes(target, n);
    Work::Head head = {layer, kv_head, work.dest.size(), work.member.size(), 0, false};
    // How far a pivot's group moves to other positions.
    const auto shift = [&](int p) { return plan.new_position ? plan.new_position[first + size_t(p)] - position[p] : 0; };
    std::vector<int32_t> group(n, -1); // of a pivot
    std::vector<size_t> next;          // of a group: where its next member goes
    int32_t total = 0;
    for (int c = 0; c < n; c++) {
        if (target[c] == c && (members[c] > 1 || dest[c] != c || shift(c) != 0)) {
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
        work.value_weight[m] = plan.value_weight && !alone ? plan.value_weight[first + size_t(c)] : work.weight[m];
        work.delta[m] = (plan.pivot_frame ? position[p] - position[c] : 0) + shift(p);
        if (!alone) {
            work.bias[head.first_group + size_t(group[p])] += float(entropy_term(weight[c])) * inverse;
        }
    }
    work.heads.push_back(head);
}

// The directions that a layer's biases are folded along: [n_head_kv][dim], where its cells are handled.
DeviceArray<float> fold_directions(const kvmerge_observer & o, kvmerge_observer::Layer & l) {
    const Device &there = *l.stats_device, &here = l.k.device();
    const void * const near = l.k.tensor()->data;
    const int dim = l.k.dim();
    const size_t n = size_t(o.params.n_head_kv) * dim;
    DeviceArray<float> u(there, n, l.query_sum.data());
    there.fold_direction(
        {l.query_sum.data(), l.query_second.data(), o.params.n_head_kv, dim, 1 / l.query_weight, o.params.ridge, u.data()});
    check(there);
    if (&there == &here) {
        return u;
    }
    std::vector<float> copy(n); // attention and cells in different places: a layer whose cells stay on the host
    u.download(copy.data(), n);
    DeviceArray<float> moved(here, n, near);
    moved.upload(copy.data(), n);
    return moved;
}

template <class T>
DeviceArray<T> uploaded(const Device & device, const std::vector<T> & x, const void * near) {
    DeviceArray<T> array(device, x.size(), near);
    array.upload(x.data(), x.size());
    return array;
}

// What planning knew of cells that are written to.
void forget(kvmerge_observer::Layer & l, int kv_head, const int32_t * cells, size_t n) {
    if (!l.neighbours.empty()) {
        l.neighbours[size_t(kv_head)].rewritten(cells, n);
    }
}

// Runs all of it: the heads of a layer or, on a GPU, of all of its layers in one launch.
void run(kvmerge_observer & o, const Work & work, const Device & device) {
    if (work.heads.empty()) {
        return;
    }
    for (const Work::Head & h : work.heads) {
        forget(o.layers[h.layer], h.kv_head, work.dest.data() + h.first_group, size_t(h.n_groups));
    }
    const void * const near = o.layers[work.heads[0].layer].k.tensor()->data;
    const auto start = uploaded(device, work.start, near), member = uploaded(device, work.member, near),
               delta = uploaded(device, work.delta, near), dest = uploaded(device, work.dest, near);
    const auto weight = uploaded(device, work.weight, near), value_weight = uploaded(device, work.value_weight, near),
               bias = uploaded(device, work.bias, near);
    std::vector<DeviceArray<float>> directions(o.layers.size());
    std::vector<MergeHead> heads;
    size_t scratch_size = 0;
    for (const Work::Head & h : work.heads) {
        auto & l = o.layers[h.layer];
        const bool folds = h.merges && o.params.bias == KVMERGE_BIAS_FOLDED;
        if (folds && directions[h.layer].size() == 0) {
            directions[h.layer] = fold_directions(o, l);
        }
        const size_t start_of = h.first_group + heads.size(); // a start more for each head before
        heads.push_back({l.k.on_device(), l.v.on_device(), h.kv_head, h.n_groups, start.data() + start_of,
                         member.data() + h.first_member, delta.data() + h.first_member, weight.data() + h.first_member,
                         value_weight.data() + h.first_member, dest.data() + h.first_group,
                         folds ? bias.data() + h.first_group : nullptr,
                         folds ? directions[h.layer].data() + size_t(h.kv_head) * l.k.dim() : nullptr, nullptr, l.rope.n_rot,
                         l.rope.neox, l.rope.freq.data(), l.rope.hadamard});
        scratch_size += size_t(h.n_groups) * (l.k.dim() + l.v.dim());
    }
    const DeviceArray<float> scratch(device, scratch_size, near);
    size_t at = 0;
    for (MergeHead & h : heads) {
        h.scratch = scratch.data() + at;
        at += size_t(h.n_groups) * (h.k.dim + h.v.dim);
    }
    check(device);
    device.merge_cells({heads.data(), int(heads.size())});
    check(device);
}

// With exact biases, the table follows the cells: b' = sum w_i b_i + H(w).
void move_biases(kvmerge_observer & o, const kvmerge_plan & plan, int layer, int head) {
    const int n = o.params.n_cells;
    const size_t first = o.head_index(layer, head) * n;
    const int32_t * target = plan.target + first;
    const std::vector<int32_t> members = group_sizes(target, n);
    std::vector<float> next(n, 0.0f);
    for (int c = 0; c < n; c++) {
        if (target[c] >= 0) {
            const double w = members[target[c]] == 1 ? 1.0 : plan.weight[first + c];
            const float b = float(w * o.bias[first + c] + entropy_term(w));
            next[plan.dest[first + target[c]]] += b;
        }
    }
    std::copy(next.begin(), next.end(), o.bias.begin() + std::ptrdiff_t(first));
}

} // namespace

namespace kvmerge {

CellView on_host(kvmerge_observer & o, CellTensor & cells) {
    const std::lock_guard<std::mutex> lock(o.mirrors);
    return cells.on_host();
}

kvmerge_observer::Layer & cells_of(kvmerge_observer & o, int32_t layer, int32_t kv_head, const int32_t * cells, int32_t n) {
    require(layer >= 0 && layer < o.params.n_layer, "no such layer");
    require(kv_head >= 0 && kv_head < o.params.n_head_kv, "no such KV head");
    require(n >= 0 && (cells || n == 0), "cells is null");
    require_cache(o, layer);
    auto & l = o.layers[layer];
    for (int32_t i = 0; i < n; i++) {
        require(cells[i] >= 0 && cells[i] < l.k.n_cells(), "no such cell");
    }
    return l;
}

} // namespace kvmerge

extern "C" {

kvmerge_status kvmerge_apply(kvmerge_observer * observer, const kvmerge_plan * plan) {
    return guarded("kvmerge_apply", [&] {
        kvmerge_observer & o = checked(observer);
        require(plan && plan->target && plan->weight && plan->position && plan->dest, "the plan or one of its arrays is null");
        parallel_for(o.params.n_layer, o.params.n_threads, [&](int64_t layer) {
            require_cache(o, int(layer));
            std::vector<int32_t> taken(o.params.n_cells, -1);
            for (int head = 0; head < o.params.n_head_kv; head++) {
                check(o, *plan, int(layer), head, taken);
            }
        });
        if (o.params.bias == KVMERGE_BIAS_FOLDED) {
            o.add_waiting_queries();
            for (int layer = 0; layer < o.params.n_layer; layer++) {
                if (!(o.layers[layer].query_weight > 0)) {
                    throw Error(KVMERGE_E_STATE, text("layer %d: no queries observed yet to fold a bias along", layer));
                }
            }
        }
        // Layers that the GPU cannot reach are the host's. A layer's K and V lie together.
        const auto add_layer = [&](Work & work, int layer, const Device & device) {
            for (int head = 0; head < o.params.n_head_kv && &o.layers[layer].k.device() == &device; head++) {
                add_head(work, o, *plan, layer, head);
            }
        };
        std::vector<char> written(o.layers.size(), 0); // what goes to and from a backend does so one after the other
        for (auto & l : o.layers) {
            l.k.on_device(), l.v.on_device();
        }
        parallel_for(o.params.n_layer, o.params.n_threads, [&](int64_t layer) {
            Work work;
            add_layer(work, int(layer), host_device());
            run(o, work, host_device());
            written[size_t(layer)] = !work.heads.empty();
        });
        if (o.device != &host_device()) {
            Work work;
            for (int layer = 0; layer < o.params.n_layer; layer++) {
                add_layer(work, layer, *o.device);
            }
            run(o, work, *o.device);
            for (const Work::Head & h : work.heads) {
                written[size_t(h.layer)] = true;
            }
        }
        for (size_t i = 0; i < o.layers.size(); i++) {
            if (written[i]) {
                o.layers[i].k.written();
                o.layers[i].v.written();
            }
        }
        if (o.params.bias == KVMERGE_BIAS_EXACT) {
            for (int layer = 0; layer < o.params.n_layer; layer++) {
                for (int head = 0; head < o.params.n_head_kv; head++) {
                    move_biases(o, *plan, layer, head);
                }
            }
        }
        o.any_bias = std::any_of(o.bias.begin(), o.bias.end(), [](float b) { return b != 0; });
    });
}

kvmerge_status kvmerge_read_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head, const int32_t * cells, int32_t n,
                                  float * keys, float * values) {
    return guarded("kvmerge_read_cells", [&] {
        kvmerge_observer & o = checked(observer);
        auto & l = cells_of(o, layer, kv_head, cells, n);
        if (keys) {
            kernels().gather_cells({on_host(o, l.k), kv_head, cells, n, keys});
        }
        if (values) {
            kernels().gather_cells({on_host(o, l.v), kv_head, cells, n, values});
        }
    });
}

kvmerge_status kvmerge_project_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head, const int32_t * cells,
                                     const int32_t * position, int32_t n, const float * weight, float * product, float * length) {
    return guarded("kvmerge_project_cells", [&] {
        kvmerge_observer & o = checked(observer);
        auto & l = cells_of(o, layer, kv_head, cells, n);
        require(weight && ((position && product && length) || n == 0), "position, weight, product or length is null");
        std::vector<double> copied(size_t(l.rope.n_rot) / 2); // the frequencies may be a GPU's
        const double * freq = l.rope.freq.data();
        if (&l.k.device() != &host_device() && !copied.empty()) {
            l.rope.freq.download(copied.data(), copied.size());
            check(l.k.device());
            freq = copied.data();
        }
        kernels().project_cells({on_host(o, l.k), on_host(o, l.v), kv_head, cells, position, n, weight, l.rope.n_rot, l.rope.neox,
                                 freq, l.rope.hadamard, product, length});
    });
}

kvmerge_status kvmerge_write_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head, const int32_t * cells, int32_t n,
                                   const float * keys, const float * values) {
    return guarded("kvmerge_write_cells", [&] {
        auto & l = cells_of(checked(observer), layer, kv_head, cells, n);
        forget(l, kv_head, cells, size_t(n));
        if (keys) {
            l.k.write(kv_head, cells, n, keys);
        }
        if (values) {
            l.v.write(kv_head, cells, n, values);
        }
    });
}

} // extern "C"
