// Planning: a border around the kernel.
#include "kernels/kernels.hpp"
#include "kvmerge.h"
#include "status.hpp"

#include <cmath>

using namespace kvmerge;

extern "C" kvmerge_status kvmerge_plan_groups(const kvmerge_groups_params * params, int32_t * group, double * cost) {
    return guarded("kvmerge_plan_groups", [&] {
        require(params && group, "params or group is null");
        const kvmerge_groups_params & p = *params;
        require(p.n > 0 && p.head_dim_k > 0 && p.head_dim_v > 0, "n and the head dimensions must be positive");
        require(p.keys && p.values && p.rate, "keys, values or rate is null");
        require(p.first >= 0 && p.first <= p.end && p.end <= p.n, "[first, end) must be within the cells");
        require(p.operations >= 0 && p.operations <= p.end - p.first, "more operations than cells that may be touched");
        require(p.largest_group >= 1, "largest_group must be positive");
        require(p.key_cost >= 0 && std::isfinite(p.key_cost), "key_cost must not be negative");
        for (int32_t i = 0; i < p.n; i++) {
            if (!(p.rate[i] >= 0) || !std::isfinite(p.rate[i])) {
                throw Error(KVMERGE_E_NUMERIC, text("cell %d: its rate is %g", i, p.rate[i]));
            }
        }
        double sum;
        kernels().plan_groups({p.keys, p.values, p.n, p.head_dim_k, p.head_dim_v, p.rate, p.first, p.end, p.operations,
                               p.largest_group, p.key_cost, group, cost ? cost : &sum});
    });
}
