// Rewriting cells by a plan.
#include "kernels/kernels.hpp"
#include "observer.hpp"
#include "parallel.hpp"
#include "status.hpp"

#include <algorithm>
#include <cmath>

namespace {

using namespace kvmerge;

// The groups of one layer and KV head that have work to do: more than one member, or a new cell.
struct Work {
    std::vector<int32_t> pivot;   // [groups]
    std::vector<int32_t> start;   // [groups + 1] into members
    std::vector<int32_t> members; // cells, group after group
    std::vector<float> entropy;   // [groups]: H(w)
};

[[noreturn]] void refuse(int layer, int head, int cell, const char * what) {
    throw Error(KVMERGE_E_ARGUMENT, text("layer %d, KV head %d, cell %d: %s", layer, head, cell, what));
}

void require_cache(const kvmerge_observer & o, int layer) {
    if (!o.layers[layer].k.tensor || !o.layers[layer].v.tensor) {
        throw Error(KVMERGE_E_STATE, text("layer %d: no KV cache seen; decode something first", layer));
    }
}

// Checks one head of the plan. Throws ARGUMENT.
void check(const kvmerge_observer & o, const kvmerge_plan & plan, int layer, int head, std::vector<int32_t> & taken) {
    const int n = o.params.n_cells;
    const size_t first = o.head_index(layer, head) * n;
    const int32_t * target = plan.target + first;
    const int32_t * dest = plan.dest + first;
    const float * weight = plan.weight + first;
    const int stamp = int(o.head_index(layer, head)) + 1; // marks this head's cells in `taken` without clearing it
    std::vector<double> sum(n, 0.0);
    for (int c = 0; c < n; c++) {
        const int p = target[c];
        if (p == -1) {
            continue;
        }
        if (c >= o.layers[layer].k.n_cells) { // the observer may have been made for more cells than the context has
            refuse(layer, head, c, "it is outside the cache");
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
        sum[p] += weight[c];
        if (c == p) {
            if (dest[c] < 0 || dest[c] >= o.layers[layer].k.n_cells) {
                refuse(layer, head, c, "its destination is outside the cache");
            }
            if (taken[dest[c]] == stamp) {
                refuse(layer, head, c, "its destination is taken by another group");
            }
            taken[dest[c]] = stamp;
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

Work work_of(const int32_t * target, const float * weight, const int32_t * dest, int n) {
    const std::vector<int32_t> members = group_sizes(target, n);
    Work work;
    std::vector<int32_t> next(n, -1); // where a pivot's next member goes
    int32_t total = 0;
    for (int c = 0; c < n; c++) {
        if (target[c] == c && (members[c] > 1 || dest[c] != c)) {
            next[c] = total;
            work.start.push_back(total);
            work.pivot.push_back(c);
            total += members[c];
        }
    }
    work.start.push_back(total);
    work.members.resize(total);
    work.entropy.assign(work.pivot.size(), 0.0f);
    for (int c = 0; c < n; c++) {
        if (target[c] >= 0 && next[target[c]] >= 0) {
            work.members[next[target[c]]++] = c;
        }
    }
    for (size_t g = 0; g < work.pivot.size(); g++) {
        double h = 0;
        for (int32_t i = work.start[g]; i < work.start[g + 1]; i++) {
            h += entropy_term(weight[work.members[i]]);
        }
        work.entropy[g] = float(h);
    }
    return work;
}

// K += bias / scale * u for every merged group, so that the average query's logit gains the bias.
void fold(const kvmerge_observer & o, const kvmerge_observer::Layer & l, int head, const Work & work, std::vector<float> & keys) {
    const int dim = l.k.head_dim;
    const float inverse = float(1 / l.query_weight);
    std::vector<float> mean(dim), second(size_t(dim) * dim), u(dim);
    for (int i = 0; i < dim; i++) {
        mean[i] = l.query_sum[size_t(head) * dim + i] * inverse;
    }
    for (size_t i = 0; i < second.size(); i++) {
        second[i] = l.query_second[size_t(head) * dim * dim + i] * inverse;
    }
    kernels().fold_direction({mean.data(), second.data(), dim, o.params.ridge, u.data()});
    for (size_t g = 0; g < work.pivot.size(); g++) {
        const float amount = work.entropy[g] / l.scale;
        for (int i = 0; i < dim; i++) {
            keys[g * dim + i] += amount * u[i];
        }
    }
}

void apply_head(kvmerge_observer & o, const kvmerge_plan & plan, int layer, int head) {
    const auto & l = o.layers[layer];
    const size_t first = o.head_index(layer, head) * o.params.n_cells;
    const int32_t * position = plan.position + first;
    const float * weight = plan.weight + first;
    const int32_t * dest = plan.dest + first;
    const Work work = work_of(plan.target + first, weight, dest, o.params.n_cells);
    const int n_groups = int(work.pivot.size()), n_members = int(work.members.size());
    const int dim_k = l.k.head_dim, dim_v = l.v.head_dim;

    // Everything is read before anything is written: a destination may be another group's member.
    std::vector<float> in_keys(size_t(n_members) * dim_k), in_values(size_t(n_members) * dim_v);
    std::vector<float> keys(size_t(n_groups) * dim_k), values(size_t(n_groups) * dim_v), w(n_members);
    std::vector<int32_t> delta(n_members), to(n_groups);
    l.k.read(head, work.members.data(), n_members, in_keys.data());
    l.v.read(head, work.members.data(), n_members, in_values.data());
    const int hadamard = plan.pivot_frame ? l.rope.hadamard : 0; // RoPE does not commute with it; averaging alone does
    if (hadamard) {
        hadamard_transform(in_keys.data(), int(in_keys.size()), hadamard);
    }
    bool merged = false;
    for (int g = 0; g < n_groups; g++) {
        const int32_t begin = work.start[g], n = work.start[g + 1] - begin;
        for (int32_t i = begin; i < begin + n; i++) {
            w[i] = n == 1 ? 1.0f : weight[work.members[i]];
            delta[i] = plan.pivot_frame ? position[work.pivot[g]] - position[work.members[i]] : 0;
        }
        to[g] = dest[work.pivot[g]];
        merged |= n > 1;
        kernels().merge_group({in_keys.data() + size_t(begin) * dim_k, in_values.data() + size_t(begin) * dim_v, w.data() + begin,
                               delta.data() + begin, n, dim_k, dim_v, l.rope.n_rot, l.rope.neox, l.rope.freq.data(),
                               keys.data() + size_t(g) * dim_k, values.data() + size_t(g) * dim_v});
    }
    if (hadamard) {
        hadamard_transform(keys.data(), int(keys.size()), hadamard);
    }
    if (merged && o.params.bias == KVMERGE_BIAS_FOLDED) {
        fold(o, l, head, work, keys);
    }
    l.k.write(head, to.data(), n_groups, keys.data());
    l.v.write(head, to.data(), n_groups, values.data());
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

extern "C" {

kvmerge_status kvmerge_apply(kvmerge_observer * observer, const kvmerge_plan * plan) {
    return guarded("kvmerge_apply", [&] {
        kvmerge_observer & o = checked(observer);
        require(plan && plan->target && plan->weight && plan->position && plan->dest, "the plan or one of its arrays is null");
        std::vector<int32_t> taken(o.params.n_cells, 0);
        for (int layer = 0; layer < o.params.n_layer; layer++) {
            require_cache(o, layer);
            for (int head = 0; head < o.params.n_head_kv; head++) {
                check(o, *plan, layer, head, taken);
            }
        }
        if (o.params.bias == KVMERGE_BIAS_FOLDED) {
            for (int layer = 0; layer < o.params.n_layer; layer++) {
                if (!(o.layers[layer].query_weight > 0)) {
                    throw Error(KVMERGE_E_STATE, text("layer %d: no queries observed yet to fold a bias along", layer));
                }
            }
        }
        parallel_for(int64_t(o.params.n_layer) * o.params.n_head_kv, o.params.n_threads, [&](int64_t i) {
            const int layer = int(i / o.params.n_head_kv), head = int(i % o.params.n_head_kv);
            apply_head(o, *plan, layer, head);
            if (o.params.bias == KVMERGE_BIAS_EXACT) {
                move_biases(o, *plan, layer, head);
            }
        });
        o.any_bias = std::any_of(o.bias.begin(), o.bias.end(), [](float b) { return b != 0; });
    });
}

static kvmerge_observer::Layer & cells_of(kvmerge_observer & o, int32_t layer, int32_t kv_head, const int32_t * cells,
                                          int32_t n) {
    require(layer >= 0 && layer < o.params.n_layer, "no such layer");
    require(kv_head >= 0 && kv_head < o.params.n_head_kv, "no such KV head");
    require(n >= 0 && (cells || n == 0), "cells is null");
    require_cache(o, layer);
    auto & l = o.layers[layer];
    for (int32_t i = 0; i < n; i++) {
        require(cells[i] >= 0 && cells[i] < l.k.n_cells, "no such cell");
    }
    return l;
}

kvmerge_status kvmerge_read_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head, const int32_t * cells, int32_t n,
                                  float * keys, float * values, float * key_steps, float * value_steps) {
    return guarded("kvmerge_read_cells", [&] {
        auto & l = cells_of(checked(observer), layer, kv_head, cells, n);
        require((keys || !key_steps) && (values || !value_steps), "steps without their vectors");
        if (keys) {
            l.k.read(kv_head, cells, n, keys);
        }
        if (values) {
            l.v.read(kv_head, cells, n, values);
        }
        if (key_steps) {
            kernels().step_distance({keys, n, l.k.head_dim, key_steps});
        }
        if (value_steps) {
            kernels().step_distance({values, n, l.v.head_dim, value_steps});
        }
    });
}

kvmerge_status kvmerge_write_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head, const int32_t * cells, int32_t n,
                                   const float * keys, const float * values) {
    return guarded("kvmerge_write_cells", [&] {
        auto & l = cells_of(checked(observer), layer, kv_head, cells, n);
        if (keys) {
            l.k.write(kv_head, cells, n, keys);
        }
        if (values) {
            l.v.write(kv_head, cells, n, values);
        }
    });
}

} // extern "C"
