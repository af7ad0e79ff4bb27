// The table's columns on GPUs: what is asked of their kernels, for all layers of a GPU at once.
#include "device_table.hpp"

#include "cache.hpp"
#include "cell_access.hpp"
#include "decay.hpp"

#include <algorithm>
#include <cmath>

namespace kvmerge {

namespace {

constexpr size_t MOST_SCRATCH = (size_t(64) << 20) / sizeof(float); // elements that are merged at once

const char * rule_of(int flaw) {
    static const char * const rules[] = {"is fine",
                                         "sends a cell to one that is no pivot",
                                         "has a weight outside 0..1",
                                         "does not leave the newest cell alone",
                                         "leaves another number of cells than the budget",
                                         "fills more cells than stay",
                                         "rewrites more cells than are over",
                                         "has a group whose weights do not sum to 1"};
    return rules[std::clamp(flaw, 0, int(sizeof rules / sizeof *rules) - 1)];
}

} // namespace

bool DeviceTable::suits(const kvmerge_observer & o, const kvmerge_cache_params & params) {
    if (o.device == &host_device() || params.record_fates || o.params.bias == KVMERGE_BIAS_EXACT) {
        return false;
    }
    return std::all_of(o.layers.begin(), o.layers.end(), [&](const kvmerge_observer::Layer & l) {
        return l.k.is_in_place_on(*o.device) && l.v.is_in_place_on(*o.device) &&
               (!o.observes_attention() || l.stats_device == o.device);
    });
}

template <class T>
void DeviceTable::need(DeviceArray<T> & array, size_t n, const Part & part) {
    if (array.size() < n) {
        bytes_ -= int64_t(array.size() * sizeof(T));
        array = DeviceArray<T>(); // first, so that both never are there
        array = DeviceArray<T>(*device_, n, part.near);
        bytes_ += int64_t(n * sizeof(T));
    }
}

DeviceTable::DeviceTable(const kvmerge_observer & o, const kvmerge_cache_params & params, const CellTable & table,
                         const std::vector<float> & calibration)
    : device_(o.device), params_(params), shape_(table.shape()),
      calibration_stride_(calibration.empty() ? 0 : CALIBRATION_SCALARS + params.calibration_dim),
      verdicts_(*o.device, size_t(shape_.pairs())), bytes_(int64_t(verdicts_.bytes())) {
    for (int layer = 0; layer < shape_.n_layer; layer++) {
        const void * const near = o.layers[size_t(layer)].k.tensor()->data;
        if (parts_.empty() || device_->place(near) != device_->place(parts_.back().near)) {
            parts_.emplace_back();
            parts_.back().first_layer = layer, parts_.back().n_layers = 0, parts_.back().near = near;
        }
        parts_.back().n_layers++;
    }
    const bool entropies = o.observes(KVMERGE_OBSERVE_ENTROPY), calibrated = calibration_stride_ > 0;
    for (Part & p : parts_) {
        const int n_heads = p.n_layers * shape_.n_head_kv;
        const size_t heads = size_t(n_heads), n = heads * size_t(shape_.n_cells);
        need(p.ints, 4 * n, p);
        need(p.floats, (2 + size_t(entropies) + size_t(calibrated)) * n, p);
        need(p.target, n, p), need(p.dest, n, p), need(p.weight, n, p), need(p.rate, n, p);
        need(p.tokens, 2 * size_t(o.params.n_tokens), p), need(p.stays, size_t(shape_.n_cells), p);
        need(p.mass, heads, p), need(p.entropy, heads, p), need(p.flaw, heads, p), need(p.verdict, heads, p);
        need(p.inverse_scale, heads, p), need(p.cost, heads, p);
        p.flaw.zero();
        p.ints.zero(); // cells are numbers of cells from the start
        int32_t * const i = p.ints.data();
        float * const f = p.floats.data();
        p.rows = {n_heads, shape_.n_cells, i, i + n, i + 2 * n, i + 3 * n, f, f + n, nullptr, nullptr};
        p.rows.entropy = entropies ? f + 2 * n : nullptr;
        p.rows.prior = calibrated ? f + (2 + size_t(entropies)) * n : nullptr;
        if (calibrated) {
            const size_t stride = size_t(calibration_stride_), all = heads * stride;
            need(p.expected, n, p), need(p.calibration, all, p);
            need(p.projected, 2 * heads * size_t(o.params.n_tokens), p);
            p.calibration.upload(calibration.data() + size_t(p.first_layer) * size_t(shape_.n_head_kv) * stride, all);
        }
        upload_constants(o, p);
        device_->reserve_scratch({p.near, p.n_layers, shape_.n_head_kv, o.heads_per_kv(), o.params.n_tokens,
                                  shape_.n_cells, o.layers[0].k.dim()});
        make_room(o, p);
    }
    check(*device_);
}

// What stays the same from block to block.
void DeviceTable::upload_constants(const kvmerge_observer & o, Part & p) {
    std::vector<const float *> mass, entropy;
    std::vector<float> inverse_scale;
    for (int h = 0; h < p.rows.n_heads; h++) {
        const auto & l = o.layers[size_t(p.first_layer + h / shape_.n_head_kv)];
        const size_t kv_head = size_t(h % shape_.n_head_kv);
        mass.push_back(l.mass.size() ? l.mass.data() + kv_head * size_t(o.params.n_cells) : nullptr);
        entropy.push_back(l.entropy.size()
                              ? l.entropy.data() + kv_head * size_t(o.heads_per_kv()) * size_t(o.params.n_tokens)
                              : nullptr);
        inverse_scale.push_back(o.params.bias == KVMERGE_BIAS_FOLDED ? 1 / l.scale : 0.0f);
    }
    p.mass.upload(mass.data(), mass.size());
    p.entropy.upload(entropy.data(), entropy.size());
    p.inverse_scale.upload(inverse_scale.data(), inverse_scale.size());
}

// With all positions going back, every cell is rewritten. Else a group is where one of its members goes or it moves
// itself, and no more move than cells are over.
int DeviceTable::room_for(int used, int over, bool back) const {
    return back ? used : std::min(used, 3 * over);
}

// Memory for the largest rewriting that there can be. For merging it is for so many heads at once as MOST_SCRATCH has
// room for; of their groups, each has a cell that is over, or takes one's place.
void DeviceTable::make_room(const kvmerge_observer & o, Part & p) {
    if (params_.n_cells == 0) {
        return; // nothing is ever rewritten
    }
    const int over = shape_.n_cells - params_.n_cells;
    const bool back = params_.position_range > 0;
    const size_t room = size_t(room_for(shape_.n_cells, over, back)), heads = size_t(p.rows.n_heads),
                 groups = size_t(back ? params_.n_cells : std::min(params_.n_cells, 2 * over)),
                 a_head = groups * size_t(o.layers[0].k.dim() + o.layers[0].v.dim());
    need(p.start, heads * (room + 1), p), need(p.lists, 4 * heads * room, p), need(p.shares, 3 * heads * room, p);
    need(p.scratch, std::max(a_head, std::min(heads * a_head, MOST_SCRATCH)), p);
}

// What the calibration takes from the newest n cells, which the table has not yet.
void DeviceTable::project(kvmerge_observer & o, Part & p, int n) {
    std::vector<ProjectCellsArgs> heads;
    for (int h = 0; h < p.rows.n_heads; h++) {
        auto & l = o.layers[size_t(p.first_layer + h / shape_.n_head_kv)];
        const float * const w = p.calibration.data() + size_t(h) * size_t(calibration_stride_);
        float * const product = p.projected.data() + size_t(h) * size_t(n);
        heads.push_back({l.k.on_device(), l.v.on_device(), h % shape_.n_head_kv, p.tokens.data(), p.tokens.data() + n,
                         n, w + CALIBRATION_SCALARS, l.rope.n_rot, l.rope.neox, l.rope.freq.data(), l.rope.hadamard,
                         product, product + size_t(p.rows.n_heads) * size_t(n)});
    }
    device_->project_heads({heads.data(), int(heads.size())});
}

void DeviceTable::add(kvmerge_observer & o, const CellTable & table, const CellTable::Block & block, int first_position,
                      int first_frame) {
    const int used = table.used(), n = block.n_tokens;
    std::vector<int32_t> tokens(block.token_cell, block.token_cell + n);
    for (int i = 0; i < n; i++) {
        tokens.push_back(first_frame + i);
    }
    for (Part & p : parts_) {
        p.tokens.upload(tokens.data(), tokens.size());
        if (calibration_stride_ > 0) {
            project(o, p, n);
        }
        const auto & l = o.layers[size_t(p.first_layer)];
        device_->add_block({p.rows, used, n, p.tokens.data(), first_position, first_frame,
                            decay_over(params_.mass_decay, n), l.mass.size() ? p.mass.data() : nullptr,
                            l.entropy.size() ? p.entropy.data() : nullptr, o.params.n_tokens, o.heads_per_kv(),
                            p.projected.data(), p.projected.data() + size_t(p.rows.n_heads) * size_t(n),
                            p.calibration.data(), calibration_stride_, p.flaw.data()});
    }
    fresh_ = false;
}

void DeviceTable::plan(kvmerge_observer & o, const CellTable & table, int now) {
    const int used = table.used(), pinned = table.pinned(), n = used - pinned, budget = table.budget() - pinned;
    const DefaultPlan of = default_plan(params_, n, budget);
    for (Part & p : parts_) {
        device_->rate_cells({p.rows, used, pinned, p.rate.data()});
        std::vector<ExpectedAttentionArgs> foreseen;
        std::vector<PlanGroupsArgs> heads;
        for (int h = 0; h < p.rows.n_heads; h++) {
            auto & l = o.layers[size_t(p.first_layer + h / shape_.n_head_kv)];
            const size_t row = size_t(h) * size_t(shape_.n_cells), first = row + size_t(pinned);
            const double * rate = p.rate.data() + row;
            if (calibration_stride_ > 0) {
                foreseen.push_back({n, rate, p.rows.prior + first, p.rows.position + first, now, LEAST_RATE,
                                    p.calibration.data() + size_t(h) * size_t(calibration_stride_) + 1,
                                    p.expected.data() + row});
                rate = p.expected.data() + row;
            }
            heads.push_back({l.k.on_device(), l.v.on_device(), h % shape_.n_head_kv, p.rows.cell + first, n, rate,
                             of.first, of.end, of.operations, params_.largest_group, params_.key_cost,
                             p.dest.data() + row, p.cost.data() + h, nullptr});
        }
        if (!foreseen.empty()) {
            device_->foresee_heads({foreseen.data(), int(foreseen.size())});
        }
        device_->plan_heads({heads.data(), int(heads.size())});
        device_->weigh_groups({p.rows, used, pinned, p.dest.data(), p.target.data(), p.weight.data()});
    }
    planned_ = true;
}

// Where the lists of a part's groups are written to.
StageHeadsArgs DeviceTable::lists(Part & p, const CellTable & table) {
    const size_t all = size_t(p.rows.n_heads) * size_t(room_);
    int32_t * const i = p.lists.data();
    float * const f = p.shares.data();
    return {p.rows,
            table.used(),
            table.pinned(),
            table.budget(),
            table.back(),
            params_.pivot_frame != 0,
            p.stays.data(),
            p.target.data(),
            p.weight.data(),
            nullptr,
            p.inverse_scale.data(),
            p.flaw.data(),
            room_,
            p.dest.data(),
            p.start.data(),
            i,
            i + all,
            i + 2 * all,
            f,
            f + all,
            i + 3 * all,
            f + 2 * all,
            p.verdict.data()};
}

// Brings plans that were staged on the host to a part.
void DeviceTable::upload_plans(Part & p, const CellTable::Staged & staged) {
    const size_t first_pair = size_t(p.first_layer) * size_t(shape_.n_head_kv), heads = size_t(p.rows.n_heads),
                 n_cells = size_t(shape_.n_cells);
    if (staged.value_weight) {
        need(p.value_weight, heads * n_cells, p);
    }
    const auto give = [&](size_t h, size_t rows) {
        const size_t to = h * n_cells, from = (first_pair + h) * n_cells, n = rows * n_cells;
        device_->upload(p.target.data() + to, staged.target + from, n * sizeof(int32_t));
        device_->upload(p.weight.data() + to, staged.weight + from, n * sizeof(float));
        if (staged.value_weight) {
            device_->upload(p.value_weight.data() + to, staged.value_weight + from, n * sizeof(float));
        }
    };
    if (!planned_) {
        give(0, heads);
    } else if (staged.value_weight) {
        throw Error(KVMERGE_E_STATE, "kvmerge_cache_plan has planned some heads, and other plans have weights of "
                                     "their own for values: plan all heads in one way");
    }
    for (size_t h = 0; planned_ && h < heads; h++) {
        if (staged.staged[first_pair + h]) {
            give(h, 1);
        }
    }
}

// The error itself may have been told to another context's call, which asked first.
void DeviceTable::require_all_done(int lost_before) const {
    if (device_->lost() != lost_before) {
        const char * const what = device_->failed();
        throw Error(KVMERGE_E_DEVICE,
                    text("%s: %s", device_->name, what ? what : "something failed there; another call had the error"));
    }
}

void DeviceTable::stage(CellTable & table) {
    const CellTable::Staged staged = table.staged(planned_);
    const int used = table.used();
    room_ = room_for(used, used - table.budget(), table.back() > 0);
    const std::vector<uint8_t> stays(table.stays().begin(), table.stays().end());
    const int lost_before = device_->lost();
    for (Part & p : parts_) {
        StageHeadsArgs args = lists(p, table);
        p.stays.upload(stays.data(), stays.size());
        upload_plans(p, staged);
        args.value_weight = staged.value_weight ? p.value_weight.data() : nullptr;
        device_->stage_heads(args);
        p.verdict.fetch(verdicts_.data() + size_t(p.first_layer) * size_t(shape_.n_head_kv));
    }
    check(*device_);
    require_all_done(lost_before); // or the verdicts may be an earlier block's
    for (int pair = 0; pair < shape_.pairs(); pair++) {
        if (verdicts_.data()[pair].flaw == FLAW_ATTENTION) {
            throw Error(KVMERGE_E_NUMERIC, "the attention has NaN or infinite entries");
        }
    }
    for (int pair = 0; pair < shape_.pairs(); pair++) {
        if (const int flaw = verdicts_.data()[pair].flaw) {
            throw Error(KVMERGE_E_ARGUMENT, text("layer %d, KV head %d: the plan %s", pair / shape_.n_head_kv,
                                                 pair % shape_.n_head_kv, rule_of(flaw)));
        }
    }
}

bool DeviceTable::has_biases(const kvmerge_observer & o, int layer) const {
    const Verdict * const first = verdicts_.data() + std::ptrdiff_t(layer) * shape_.n_head_kv;
    return o.params.bias == KVMERGE_BIAS_FOLDED &&
           std::any_of(first, first + shape_.n_head_kv, [](const Verdict & v) { return v.merges != 0; });
}

// Rewrites a part's cells: all heads in two launches, or as many at once as scratch memory is for.
void DeviceTable::merge(kvmerge_observer & o, Part & p, const std::vector<const float *> & directions) {
    std::vector<MergeHead> heads;
    std::vector<size_t> sizes;
    const size_t room = size_t(room_), all = size_t(p.rows.n_heads) * room;
    for (int h = 0; h < p.rows.n_heads; h++) {
        const int layer = p.first_layer + h / shape_.n_head_kv, kv_head = h % shape_.n_head_kv;
        const Verdict & v = verdicts_.data()[layer * shape_.n_head_kv + kv_head];
        auto & l = o.layers[size_t(layer)];
        if (v.n_groups == 0) {
            continue;
        }
        const size_t at = size_t(h) * room;
        const bool folds = v.merges && directions[size_t(layer)];
        heads.push_back({l.k.on_device(), l.v.on_device(), kv_head, v.n_groups, p.start.data() + size_t(h) * (room + 1),
                         p.lists.data() + at, p.lists.data() + 2 * all + at, p.shares.data() + at,
                         p.shares.data() + all + at, p.lists.data() + 3 * all + at,
                         folds ? p.shares.data() + 2 * all + at : nullptr,
                         folds ? directions[size_t(layer)] + size_t(kv_head) * size_t(l.k.dim()) : nullptr, nullptr,
                         l.rope.n_rot, l.rope.neox, l.rope.freq.data(), l.rope.hadamard});
        sizes.push_back(size_t(v.n_groups) * size_t(l.k.dim() + l.v.dim()));
    }
    for (size_t from = 0, to; from < heads.size(); from = to) {
        size_t size = sizes[from];
        for (to = from + 1; to < heads.size() && size + sizes[to] <= MOST_SCRATCH; to++) {
            size += sizes[to];
        }
        float * scratch = p.scratch.data();
        for (size_t i = from; i < to; i++) {
            heads[i].scratch = scratch;
            scratch += sizes[i];
        }
        device_->merge_cells({heads.data() + from, int(to - from)});
    }
}

void DeviceTable::commit(kvmerge_observer & o, const CellTable & table, const std::vector<const float *> & directions) {
    const int lost_before = device_->lost();
    for (Part & p : parts_) {
        merge(o, p, directions);
        const size_t all = size_t(p.rows.n_heads) * size_t(room_);
        device_->commit_heads({p.rows, table.used(), table.back(), room_, p.dest.data(), p.start.data(),
                               p.lists.data() + all, p.shares.data(), p.verdict.data()});
    }
    planned_ = fresh_ = false;
    require_all_done(lost_before); // as far as is known already
}

// Calls body(array on the device, array on the host, elements) for each column that is kept.
template <class Body>
void DeviceTable::each_column(Part & p, CellTable::Columns & c, Body && body) {
    const size_t n_cells = size_t(shape_.n_cells), heads = size_t(p.rows.n_heads);
    const size_t first = size_t(p.first_layer) * size_t(shape_.n_head_kv) * n_cells;
    const auto column = [&](auto * there, auto & here) {
        if (there) {
            body(there, here.data() + first, heads * n_cells);
        }
    };
    column(p.rows.cell, c.cell), column(p.rows.position, c.position), column(p.rows.frame, c.frame);
    column(p.rows.count, c.count), column(p.rows.mass, c.mass), column(p.rows.exposure, c.exposure);
    column(p.rows.entropy, c.entropy), column(p.rows.prior, c.prior);
}

void DeviceTable::forget() {
    for (Part & p : parts_) {
        p.flaw.zero();
    }
    planned_ = false;
}

void DeviceTable::fetch(CellTable & table) {
    const std::lock_guard<std::mutex> lock(fetching_);
    if (fresh_) {
        return;
    }
    for (Part & p : parts_) {
        each_column(p, table.copy(),
                    [&](auto * there, auto * here, size_t n) { device_->download(here, there, n * sizeof *here); });
    }
    check(*device_);
    fresh_ = true;
}

void DeviceTable::replace(const CellTable & table) {
    CellTable::Columns columns = table.columns();
    for (Part & p : parts_) {
        each_column(p, columns,
                    [&](auto * there, auto * here, size_t n) { device_->upload(there, here, n * sizeof *here); });
    }
    forget();
    check(*device_);
    fresh_ = true;
}

} // namespace kvmerge
