// The default strategy, entropy-merged: for each layer and KV head the cheapest of dropping a cell and merging it with
// its neighbour, again and again. docs/architecture.md has the derivation. EntropyMerged.java says the same.
#include "cache.hpp"
#include "parallel.hpp"

#include <algorithm>
#include <cmath>

using namespace kvmerge;

namespace {

// The end of the cells that may be touched: the newest have a share of the budget for themselves, less where the sinks
// leave it less. The newest cell is never among them.
int end_of_middle(int n, int first, int budget, double recent_share) {
    const long recent = std::lround(recent_share * budget);
    return n - int(std::clamp(recent, 1L, long(budget - first)));
}

} // namespace

kvmerge::DefaultPlan kvmerge::default_plan(const kvmerge_cache_params & params, int n, int budget) {
    const int first = std::min(params.sinks, budget - 1);
    return {first, end_of_middle(n, first, budget, params.recent_share), n - budget};
}

void kvmerge_cache::plan() {
    require_due();
    require_mass();
    if (there) {
        plan_there();
        return;
    }
    parallel_for(table.shape().pairs(), n_threads, [&](int64_t pair) { plan(int(pair)); });
}

void kvmerge_cache::plan(int pair) {
    const int n_head_kv = table.shape().n_head_kv, layer = pair / n_head_kv, kv_head = pair % n_head_kv;
    const size_t from = table.row(pair) + size_t(table.pinned());
    const int n = table.used() - table.pinned(), budget = table.budget() - table.pinned();
    const CellTable::Columns & columns = table.columns();
    const DefaultPlan of = default_plan(params, n, budget);

    std::vector<double> received(static_cast<size_t>(n));
    for (size_t i = 0; i < received.size(); i++) {
        received[i] = double(columns.mass[from + i] / columns.exposure[from + i]);
    }
    std::vector<double> expected = received;
    if (!calibration.empty()) {
        const float * const w =
            calibration.data() + size_t(pair) * size_t(CALIBRATION_SCALARS + params.calibration_dim);
        pass(kvmerge_expected_attention(n, received.data(), columns.prior.data() + from, columns.position.data() + from,
                                        columns.position[from + size_t(n) - 1] + 1, LEAST_RATE, w + 1,
                                        expected.data()));
    }
    kvmerge_groups_params p = {};
    p.n = n;
    p.first = of.first;
    p.end = of.end;
    p.operations = of.operations;
    p.largest_group = params.largest_group;
    p.key_cost = params.key_cost;
    p.rate = expected.data();
    std::vector<int32_t> group(static_cast<size_t>(n));
    pass(kvmerge_plan_cells(observer, layer, kv_head, columns.cell.data() + from, &p, group.data(), nullptr));

    // Members weigh what they received, which by the Gibbs principle keeps their mass. The heaviest is the pivot.
    std::vector<double> total(group.size(), 0.0);
    std::vector<int32_t> size(group.size(), 0), pivot(group.size(), -1), target(group.size());
    for (int i = 0; i < n; i++) {
        if (const int32_t g = group[size_t(i)]; g >= 0) {
            total[size_t(g)] += received[size_t(i)];
            size[size_t(g)]++;
            int32_t & best = pivot[size_t(g)];
            best = best < 0 || received[size_t(i)] > received[size_t(best)] ? i : best;
        }
    }
    std::vector<float> weight(group.size(), 1.0f);
    for (int i = 0; i < n; i++) {
        const int32_t g = group[size_t(i)];
        target[size_t(i)] = g < 0 ? -1 : pivot[size_t(g)];
        if (g >= 0 && size[size_t(g)] > 1) {
            weight[size_t(i)] =
                float(total[size_t(g)] > 0 ? received[size_t(i)] / total[size_t(g)] : 1.0 / size[size_t(g)]);
        }
    }
    table.stage(pair, {n, target.data(), weight.data(), nullptr});
}
