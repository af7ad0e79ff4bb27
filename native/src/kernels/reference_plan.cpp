// Planning as its definition reads, in double precision: foreseen attention, and what to drop and what to merge by it.
#include "reference.hpp"

#include <algorithm>
#include <cmath>
#include <vector>

namespace kvmerge {
namespace reference {

void expected_attention(const ExpectedAttentionArgs & a) {
    for (int i = 0; i < a.n; i++) {
        const int before = std::max(i - 1, 0), after = std::min(i + 1, a.n - 1);
        const double sum = a.prior[i] + a.weight[0] * std::log(a.rate[i] + a.least) +
                           a.weight[1] * std::log(a.rate[before] + a.least) +
                           a.weight[2] * std::log(a.rate[after] + a.least) +
                           a.weight[3] * std::log(double(a.now) - a.position[i]);
        a.expected[i] = std::exp(std::min(sum, 88.0));
    }
}

// The plainest form: works out all prices anew before each operation.
void plan_groups(const PlanGroupsArgs & a) {
    struct Group {
        int first;
        double rate;
        std::vector<double> key, value;
        int size;
    };
    const int dim_k = a.keys.dim, dim_v = a.values.dim;
    std::vector<float> keys(size_t(a.n) * dim_k), values(size_t(a.n) * dim_v);
    gather_cells({a.keys, a.head, a.cells, a.n, keys.data()});
    gather_cells({a.values, a.head, a.cells, a.n, values.data()});
    std::vector<double> mean(dim_v, 0.0);
    double total = 0;
    for (int i = 0; i < a.n; i++) {
        total += a.rate[i];
    }
    for (int i = 0; i < a.n; i++) {
        for (int d = 0; d < dim_v; d++) {
            mean[d] += (total > 0 ? a.rate[i] / total : 1.0 / a.n) * values[size_t(i) * dim_v + d];
        }
    }
    std::vector<Group> groups;
    for (int i = 0; i < a.n; i++) {
        a.group[i] = i;
        if (i >= a.first && i < a.end) {
            const float *key = keys.data() + size_t(i) * dim_k, *value = values.data() + size_t(i) * dim_v;
            groups.push_back({i, a.rate[i], {key, key + dim_k}, {value, value + dim_v}, 1});
        }
    }
    const auto distance = [](const std::vector<double> & x, const std::vector<double> & y) {
        double sum = 0;
        for (size_t i = 0; i < x.size(); i++) {
            sum += (x[i] - y[i]) * (x[i] - y[i]);
        }
        return std::sqrt(sum);
    };
    const auto mixed = [](const std::vector<double> & x, double wx, const std::vector<double> & y, double wy) {
        std::vector<double> out(x.size());
        for (size_t i = 0; i < x.size(); i++) {
            out[i] = wx * x[i] + wy * y[i];
        }
        return out;
    };
    *a.cost = 0;
    for (int done = 0; done < a.operations; done++) {
        size_t best = 0;
        bool merging = false;
        double least = INFINITY;
        for (size_t i = 0; i < groups.size(); i++) {
            const Group & g = groups[i];
            const double drop = g.rate * distance(g.value, mean);
            if (drop < least) {
                best = i, merging = false, least = drop;
            }
            if (i + 1 == groups.size()) {
                continue;
            }
            const Group & h = groups[i + 1];
            if (g.size + h.size > a.largest_group || g.rate == 0 || h.rate == 0) {
                continue;
            }
            const double rate = g.rate + h.rate, wg = g.rate / rate, wh = h.rate / rate;
            const double sigma = std::sqrt(a.key_cost / dim_k) * distance(g.key, h.key);
            const double merge =
                rate * wg * wh * sigma *
                (distance(g.value, h.value) + sigma / 2 * distance(mixed(g.value, wg, h.value, wh), mean));
            if (merge < drop && merge < least) {
                best = i, merging = true, least = merge;
            }
        }
        Group & g = groups[best];
        *a.cost += least;
        if (merging) {
            const Group & h = groups[best + 1];
            const double rate = g.rate + h.rate;
            g.key = mixed(g.key, g.rate / rate, h.key, h.rate / rate);
            g.value = mixed(g.value, g.rate / rate, h.value, h.rate / rate);
            g.rate = rate;
            g.size += h.size;
            std::replace(a.group, a.group + a.n, h.first, g.first);
            groups.erase(groups.begin() + std::ptrdiff_t(best) + 1);
        } else {
            std::replace(a.group, a.group + a.n, g.first, -1);
            groups.erase(groups.begin() + std::ptrdiff_t(best));
        }
    }
}

} // namespace reference
} // namespace kvmerge
