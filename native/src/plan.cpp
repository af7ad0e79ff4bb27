// The functions of kvmerge.h that plan: they check arguments and call kernels.
#include "cell_access.hpp"
#include "kernels/kernels.hpp"
#include "kvmerge.h"
#include "status.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

using namespace kvmerge;

namespace {

constexpr int32_t MOST_CELLS = 1 << 27, MOST_DIMENSIONS = 1 << 16; // in arrays that a caller gives

void require_rate(int32_t cell, double rate) {
    if (!(rate >= 0) || !std::isfinite(rate)) {
        throw Error(KVMERGE_E_NUMERIC, text("cell %d: its rate is %g", cell, rate));
    }
}

void check(const kvmerge_groups_params & p) {
    require(p.n > 0 && p.n <= MOST_CELLS, "n must be 1..2^27");
    require(p.rate, "rate is null");
    require(p.first >= 0 && p.first <= p.end && p.end <= p.n, "[first, end) must be within the cells");
    require(p.operations >= 0 && p.operations <= p.end - p.first, "more operations than cells that may be touched");
    require(p.largest_group >= 1, "largest_group must be positive");
    require(p.key_cost >= 0 && std::isfinite(p.key_cost), "key_cost must not be negative");
    for (int32_t i = 0; i < p.n; i++) {
        require_rate(i, p.rate[i]);
    }
}

void plan(const CellView & keys, const CellView & values, int head, const int32_t * cells,
          const kvmerge_groups_params & p, int32_t * group, double * cost, Neighbour * known) {
    double sum;
    kernels().plan_groups({keys, values, head, cells, p.n, p.rate, p.first, p.end, p.operations, p.largest_group,
                           p.key_cost, group, cost ? cost : &sum, known});
}

// A view of rows of floats as the cells of one head.
CellView rows(const float * x, int32_t n, int32_t dim) {
    return {const_cast<float *>(x), CELL_F32, 0, dim, n, std::ptrdiff_t(dim) * std::ptrdiff_t(sizeof(float))};
}

} // namespace

extern "C" {

kvmerge_status kvmerge_expected_attention(int32_t n, const double * rate, const float * prior, const int32_t * position,
                                          int32_t now, double least, const float w[4], double * expected) {
    return guarded("kvmerge_expected_attention", [&] {
        require(n > 0 && n <= MOST_CELLS, "n must be 1..2^27");
        require(rate && prior && position && w && expected, "rate, prior, position, w or expected is null");
        require(least > 0 && std::isfinite(least), "least must be positive and finite");
        require_finite(w, 4, "w");
        require_finite(prior, size_t(n), "prior");
        for (int32_t i = 0; i < n; i++) {
            require(position[i] < now && int64_t(now) - position[i] <= INT32_MAX, "a position is not before now");
            require_rate(i, rate[i]);
        }
        std::vector<double> result(static_cast<size_t>(n));
        kernels().expected_attention({n, rate, prior, position, now, least, w, result.data()});
        for (int32_t i = 0; i < n; i++) { // large finite weights can lead to infinity - infinity
            if (std::isnan(result[size_t(i)])) {
                throw Error(KVMERGE_E_NUMERIC, text("cell %d: what it is expected to get is no number", i));
            }
        }
        std::copy(result.begin(), result.end(), expected);
    });
}

kvmerge_status kvmerge_plan_groups(const kvmerge_groups_params * params, int32_t * group, double * cost) {
    return guarded("kvmerge_plan_groups", [&] {
        require(params && group, "params or group is null");
        const kvmerge_groups_params & p = *params;
        require(p.head_dim_k > 0 && p.head_dim_k <= MOST_DIMENSIONS && p.head_dim_v > 0 &&
                    p.head_dim_v <= MOST_DIMENSIONS,
                "the head dimensions must be 1..65536");
        require(p.keys && p.values, "keys or values is null");
        check(p);
        std::vector<int32_t> all(size_t(p.n));
        std::iota(all.begin(), all.end(), 0);
        plan(rows(p.keys, p.n, p.head_dim_k), rows(p.values, p.n, p.head_dim_v), 0, all.data(), p, group, cost,
             nullptr);
    });
}

kvmerge_status kvmerge_plan_cells(kvmerge_observer * observer, int32_t layer, int32_t kv_head, const int32_t * cells,
                                  const kvmerge_groups_params * params, int32_t * group, double * cost) {
    return on_observer("kvmerge_plan_cells", observer, Access::SHARED, [&](kvmerge_observer & o) {
        require(params && group, "params or group is null");
        auto & l = cells_of(o, layer, kv_head, cells, params->n); // first: it bounds n
        check(*params);
        require_distinct(cells, params->n, l.k.n_cells());
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
