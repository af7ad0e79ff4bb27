// Planning: a border around the kernel.
#include "kernels/kernels.hpp"
#include "kvmerge.h"
#include "observer.hpp"
#include "status.hpp"

#include <cmath>
#include <numeric>
#include <vector>

using namespace kvmerge;

namespace {

void require_rate(int32_t cell, double rate) {
    if (!(rate >= 0) || !std::isfinite(rate)) {
        throw Error(KVMERGE_E_NUMERIC, text("cell %d: its rate is %g", cell, rate));
    }
}

void check(const kvmerge_groups_params & p) {
    require(p.n > 0, "n must be positive");
    require(p.rate, "rate is null");
    require(p.first >= 0 && p.first <= p.end && p.end <= p.n, "[first, end) must be within the cells");
    require(p.operations >= 0 && p.operations <= p.end - p.first, "more operations than cells that may be touched");
    require(p.largest_group >= 1, "largest_group must be positive");
    require(p.key_cost >= 0 && std::isfinite(p.key_cost), "key_cost must not be negative");
    for (int32_t i = 0; i < p.n; i++) {
        require_rate(i, p.rate[i]);
    }
}

void plan(const CellView & keys, const CellView & values, int head, const int32_t * cells, const kvmerge_groups_params & p,
          int32_t * group, double * cost, Neighbour * known) {
    double sum;
    kernels().plan_groups({keys, values, head, cells, p.n, p.rate, p.first, p.end, p.operations, p.largest_group, p.key_cost,
                           group, cost ? cost : &sum, known});
}

// Rows of floats as a cache of one head.
CellView rows(const float * x, int32_t n, int32_t dim) {
    return {const_cast<float *>(x), CELL_F32, 0, dim, n, std::ptrdiff_t(dim) * std::ptrdiff_t(sizeof(float))};
}

} // namespace

extern "C" {

kvmerge_status kvmerge_expected_attention(int32_t n, const double * rate, const float * prior, const int32_t * position,
                                          int32_t now, double least, const float w[4], double * expected) {
    return guarded("kvmerge_expected_attention", [&] {
        require(n > 0, "n must be positive");
        require(rate && prior && position && w && expected, "rate, prior, position, w or expected is null");
        require(least > 0, "least must be positive");
        for (int32_t i = 0; i < n; i++) {
            require(position[i] < now && int64_t(now) - position[i] <= INT32_MAX, "a position is not before now");
            require_rate(i, rate[i]);
        }
        kernels().expected_attention({n, rate, prior, position, now, least, w, expected});
    });
}

kvmerge_status kvmerge_plan_groups(const kvmerge_groups_params * params, int32_t * group, double * cost) {
    return guarded("kvmerge_plan_groups", [&] {
        require(params && group, "params or group is null");
        const kvmerge_groups_params & p = *params;
        require(p.head_dim_k > 0 && p.head_dim_v > 0, "the head dimensions must be positive");
        require(p.keys && p.values, "keys or values is null");
        check(p);
        std::vector<int32_t> all(size_t(p.n));
        std::iota(all.begin(), all.end(), 0);
        plan(rows(p.keys, p.n, p.head_dim_k), rows(p.values, p.n, p.head_dim_v), 0, all.data(), p, group, cost, nullptr);
    });
}

kvmerge_status kvmerge_plan_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head, const int32_t * cells,
                                  const kvmerge_groups_params * params, int32_t * group, double * cost) {
    return guarded("kvmerge_plan_cells", [&] {
        require(params && group, "params or group is null");
        check(*params);
        auto & o = checked(observer);
        auto & l = cells_of(o, layer, kv_head, cells, params->n);
        const CellView keys = on_host(o, l.k), values = on_host(o, l.v);
        {
            const std::lock_guard<std::mutex> lock(o.mirrors);
            while (l.neighbours.size() < size_t(o.params.n_head_kv)) {
                l.neighbours.emplace_back(l.k.n_cells());
            }
        }
        l.neighbours[size_t(kv_head)].use(
            [&](Neighbour * known) { plan(keys, values, kv_head, cells, *params, group, cost, known); });
    });
}

} // extern "C"
