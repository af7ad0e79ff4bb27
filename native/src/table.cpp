// The table of the cells: adding blocks, and moving to what plans make of it.
#include "table.hpp"

#include "decay.hpp"
#include "status.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace kvmerge {

namespace {

constexpr int32_t DROPPED = -1;

std::vector<char> marks(size_t n) {
    return std::vector<char>(n, char(0));
}

} // namespace

CellTable::Columns::Columns(size_t n)
    : cell(n), position(n), frame(n), mass(n), exposure(n), entropy(n), count(n), prior(n) {}

size_t CellTable::Columns::bytes() const {
    return bytes_of(cell) + bytes_of(position) + bytes_of(frame) + bytes_of(mass) + bytes_of(exposure) +
           bytes_of(entropy) + bytes_of(count) + bytes_of(prior);
}

CellTable::CellTable(const Shape & shape, bool keeps_newest, bool limits_positions, bool records_fates)
    : shape_(shape), keeps_newest_(keeps_newest), records_fates_(records_fates),
      now_(size_t(shape.pairs()) * size_t(shape.n_cells)), next_(now_), stays_(marks(size_t(shape.n_cells))),
      staged_(marks(size_t(shape.pairs()))), values_apart_(staged_), target_(now_.cell.size()),
      position_(target_.size()), dest_(target_.size()), new_position_(limits_positions ? target_.size() : 0),
      fate_(records_fates ? target_.size() : 0), weight_(target_.size()) {
    held_.reserve(size_t(shape.n_cells));
    staying_.reserve(size_t(shape.n_cells));
    if (records_fates) {
        fates_.resize(size_t(shape.pairs()));
    }
}

int64_t CellTable::bytes() const {
    const std::lock_guard<std::mutex> lock(sizing_);
    size_t bytes = now_.bytes() + next_.bytes() + bytes_of(held_) + bytes_of(staying_) + bytes_of(stays_) +
                   bytes_of(staged_) + bytes_of(values_apart_) + bytes_of(target_) + bytes_of(position_) +
                   bytes_of(dest_) + bytes_of(new_position_) + bytes_of(fate_) + bytes_of(weight_) +
                   bytes_of(value_weight_);
    for (const auto & of_pair : fates_) {
        bytes += bytes_of(of_pair);
    }
    return int64_t(bytes);
}

void CellTable::clear() {
    held_.clear();
    pinned_ = 0;
    for (auto & of_pair : fates_) {
        of_pair.clear();
    }
}

void CellTable::replace(State && state) noexcept {
    held_.assign(state.held.begin(), state.held.end()); // there is room
    pinned_ = state.pinned;
    now_ = std::move(state.columns);
    fates_ = std::move(state.fates);
}

// Mean over the KV head's query heads.
float CellTable::token_entropy(const Block & block, int pair, int token) const {
    const int n = shape_.n_head / shape_.n_head_kv;
    const size_t first = size_t(pair / shape_.n_head_kv) * size_t(shape_.n_head) + size_t(pair % shape_.n_head_kv * n);
    float sum = 0;
    for (int h = 0; h < n; h++) {
        sum += block.entropy[(first + size_t(h)) * size_t(block.entropy_stride) + size_t(token)];
    }
    return sum / float(n);
}

void CellTable::check(const Block & block) const {
    const int used = this->used(), n = block.n_tokens;
    require(n > 0 && n <= shape_.n_cells - used, "more tokens than there are cells");
    std::vector<char> taken = marks(size_t(shape_.n_cells));
    for (const int32_t cell : held_) {
        taken[size_t(cell)] = 1;
    }
    for (int t = 0; t < n; t++) {
        const int32_t cell = block.token_cell[t];
        require(cell >= 0 && cell < shape_.n_cells && !taken[size_t(cell)],
                "a token of the block is in a cell that is in use: was the block taken before?");
        taken[size_t(cell)] = 1;
    }
}

void CellTable::add(const Block & block, int first_position, int first_frame, double mass_decay) {
    const int used = this->used(), n = block.n_tokens;
    const double keep = decay_over(mass_decay, n);
    check(block);
    for (auto & of_pair : fates_) { // what lacks memory does so before anything changes
        if (const size_t needed = size_t(first_position + n); needed > of_pair.capacity()) {
            of_pair.reserve(std::max(needed, 2 * of_pair.capacity()));
        }
    }
    for (int pair = 0; pair < shape_.pairs() && !elsewhere_; pair++) {
        const size_t base = row(pair);
        for (size_t i = base; i < base + size_t(used); i++) {
            now_.exposure[i] = float(now_.exposure[i] * keep + n);
        }
        for (int t = 0; t < n; t++) {
            const size_t i = base + size_t(used + t);
            now_.cell[i] = block.token_cell[t];
            now_.position[i] = first_position + t;
            now_.frame[i] = first_frame + t;
            now_.mass[i] = 0;
            now_.exposure[i] = float(n - t);
            now_.entropy[i] = block.entropy ? token_entropy(block, pair, t) : 0;
            now_.count[i] = 1;
            now_.prior[i] = block.prior ? block.prior[size_t(pair) * size_t(n) + size_t(t)] : 0;
        }
        for (size_t i = base; block.mass && i < base + size_t(used + n); i++) {
            now_.mass[i] = float(now_.mass[i] * keep + block.mass[base + size_t(now_.cell[i])]);
        }
    }
    held_.insert(held_.end(), block.token_cell, block.token_cell + n);
    for (auto & of_pair : fates_) {
        for (int t = 0; t < n; t++) {
            of_pair.push_back(first_position + t);
        }
    }
}

// Between two blocks, a budget that the cells in use are more than, and no more positions back than the block had.
void CellTable::begin(int budget, int back) noexcept {
    budget_ = budget;
    back_ = back;
    // The cells that llama.cpp keeps, in the order of its positions: the newest that stays is `back` before the newest
    // there is.
    staying_.assign(held_.end() - budget, held_.end()); // there is room
    if (!keeps_newest_) {
        std::iota(staying_.begin(), staying_.end(), 0);
        staying_.back() = held_[held_.size() - 1 - size_t(back)];
    }
    std::fill(stays_.begin(), stays_.end(), char(0));
    for (const int32_t cell : staying_) {
        stays_[size_t(cell)] = 1;
    }
    std::fill(staged_.begin(), staged_.end(), char(0));
    std::fill(values_apart_.begin(), values_apart_.end(), char(0));
    value_weight_.clear();
}

// Throws ARGUMENT.
void CellTable::check(const Plan & plan) const {
    const int n = used() - pinned_;
    const auto refuse = [](const std::string & what) { throw Error(KVMERGE_E_ARGUMENT, what); };
    require(plan.target && plan.weight, "target or weight is null");
    if (plan.n != n) {
        refuse(text("a plan for %d cells where there are %d", plan.n, n));
    }
    if (n == 0) {
        refuse("there are no cells to plan with: all are pinned");
    }
    std::vector<double> sum(size_t(n), 0.0);
    int groups = 0;
    for (int i = 0; i < n; i++) {
        const int p = plan.target[i];
        if (plan.value_weight && !std::isfinite(plan.value_weight[i])) {
            refuse(text("the value of cell %d has weight %g", i, double(plan.value_weight[i])));
        }
        if (p == DROPPED) {
            continue;
        }
        if (p < 0 || p >= n || plan.target[p] != p) {
            refuse(text("cell %d goes to %d, which is not a pivot", i, p));
        }
        if (!(plan.weight[i] >= 0) || plan.weight[i] > 1.001f) {
            refuse(text("cell %d has weight %g", i, double(plan.weight[i])));
        }
        sum[size_t(p)] += plan.weight[i];
        groups += p == i;
    }
    for (int i = 0; i < n; i++) {
        if (plan.target[i] == i && std::fabs(sum[size_t(i)] - 1) > 1e-3) {
            refuse(text("the weights of pivot %d's group sum to %g", i, sum[size_t(i)]));
        }
    }
    if (plan.target[n - 1] != n - 1 || std::fabs(double(plan.weight[n - 1]) - 1) > 1e-3) {
        refuse("the newest cell must stay, alone: llama.cpp needs its position");
    }
    if (groups != budget_ - pinned_) {
        refuse(text("the plan leaves %d cells where the budget is %d", groups, budget_ - pinned_));
    }
}

void CellTable::stage(int pair, const Plan & plan) {
    try {
        check(plan);
    } catch (const Error & e) {
        throw Error(e.status, text("the plan for layer %d, KV head %d: %s", pair / shape_.n_head_kv,
                                   pair % shape_.n_head_kv, e.what()));
    }
    if (elsewhere_) {
        stage_by_index(pair, plan);
        return;
    }
    const int used = this->used(), first = pinned_;
    const size_t base = row(pair), n_cells = size_t(shape_.n_cells);
    const auto target_of = [&](int i) {
        return i < first ? i : plan.target[i - first] == DROPPED ? DROPPED : plan.target[i - first] + first;
    };
    const auto weight_of = [&](int i) { return i < first ? 1.0f : plan.weight[i - first]; };
    std::vector<char> taken = marks(n_cells);              // what lacks memory does so before anything is written
    std::vector<int32_t> group(static_cast<size_t>(used)); // of a pivot
    if (plan.value_weight) {
        const std::lock_guard<std::mutex> lock(sizing_);
        value_weight_.resize(target_.size());
    }
    staged_[size_t(pair)] = 0;
    std::fill_n(target_.begin() + std::ptrdiff_t(base), n_cells, DROPPED);
    for (int i = 0; i < used; i++) {
        const size_t from = base + size_t(i), cell = size_t(now_.cell[from]);
        position_[base + cell] = now_.frame[from];
        taken[cell] = target_of(i) == i;
        if (plan.value_weight) {
            value_weight_[base + cell] = i < first ? 1.0f : plan.value_weight[i - first];
        }
        if (records_fates_) {
            fate_[from] = target_of(i) == DROPPED ? DROPPED : now_.position[base + size_t(target_of(i))];
        }
    }
    // Pivots that already lie in a cell that stays, stay in it; the others take the free ones in order.
    size_t free = 0;
    int groups = 0;
    for (int i = 0; i < used; i++) {
        if (target_of(i) != i) {
            continue;
        }
        const size_t from = base + size_t(i), to = base + size_t(groups), cell = size_t(now_.cell[from]);
        size_t dest = cell;
        if (!stays_[dest]) {
            while (free < n_cells && (taken[free] || !stays_[free])) {
                free++;
            }
            if (free == n_cells) {
                throw Error(KVMERGE_E_STATE, "fewer cells stay than the plan fills: the table contradicts itself");
            }
            dest = free++;
        }
        dest_[base + cell] = int32_t(dest);
        target_[base + cell] = int32_t(cell);
        weight_[base + cell] = weight_of(i);
        next_.cell[to] = int32_t(dest);
        next_.position[to] = now_.position[from];
        next_.frame[to] = std::max(groups, now_.frame[from] - back_);
        next_.mass[to] = now_.mass[from];
        next_.exposure[to] = now_.exposure[from];
        next_.entropy[to] = weight_of(i) * now_.entropy[from]; // the rest comes from its members
        next_.count[to] = now_.count[from];
        next_.prior[to] = weight_of(i) * now_.prior[from];
        if (back_ > 0) {
            new_position_[base + cell] = next_.frame[to];
        }
        group[size_t(i)] = groups++;
    }
    for (int i = 0; i < used; i++) {
        const int p = target_of(i);
        if (p == i || p == DROPPED) {
            continue;
        }
        const size_t from = base + size_t(i), to = base + size_t(group[size_t(p)]), cell = size_t(now_.cell[from]);
        target_[base + cell] = now_.cell[base + size_t(p)];
        weight_[base + cell] = weight_of(i);
        next_.mass[to] += now_.mass[from];
        next_.entropy[to] += weight_of(i) * now_.entropy[from];
        next_.count[to] += now_.count[from];
        next_.prior[to] += weight_of(i) * now_.prior[from];
    }
    values_apart_[size_t(pair)] = plan.value_weight != nullptr;
    staged_[size_t(pair)] = 1;
}

void CellTable::stage_by_index(int pair, const Plan & plan) {
    if (plan.value_weight) {
        const std::lock_guard<std::mutex> lock(sizing_);
        value_weight_.resize(target_.size());
    }
    std::copy_n(plan.target, plan.n, target_.begin() + std::ptrdiff_t(row(pair)));
    std::copy_n(plan.weight, plan.n, weight_.begin() + std::ptrdiff_t(row(pair)));
    if (plan.value_weight) {
        std::copy_n(plan.value_weight, plan.n, value_weight_.begin() + std::ptrdiff_t(row(pair)));
    }
    values_apart_[size_t(pair)] = plan.value_weight != nullptr;
    staged_[size_t(pair)] = 1;
}

CellTable::Staged CellTable::staged(bool some) {
    for (int pair = 0; pair < shape_.pairs(); pair++) {
        if (!some && !staged_[size_t(pair)]) {
            throw Error(KVMERGE_E_STATE,
                        text("layer %d, KV head %d has no plan yet", pair / shape_.n_head_kv, pair % shape_.n_head_kv));
        }
        if (!value_weight_.empty() && !values_apart_[size_t(pair)]) {
            const auto from = weight_.begin() + std::ptrdiff_t(row(pair));
            std::copy_n(from, shape_.n_cells, value_weight_.begin() + std::ptrdiff_t(row(pair)));
        }
    }
    return {target_.data(), weight_.data(), value_weight_.empty() ? nullptr : value_weight_.data(), staged_};
}

kvmerge_moves CellTable::moves(bool pivot_frame) {
    staged(false);
    kvmerge_moves moves = {};
    moves.target = target_.data();
    moves.weight = weight_.data();
    moves.value_weight = value_weight_.empty() ? nullptr : value_weight_.data();
    moves.position = position_.data();
    moves.dest = dest_.data();
    moves.new_position = back_ > 0 ? new_position_.data() : nullptr;
    moves.pivot_frame = pivot_frame;
    return moves;
}

void CellTable::commit() noexcept {
    for (int pair = 0; records_fates_ && pair < shape_.pairs(); pair++) {
        for (size_t i = row(pair); i < row(pair) + held_.size(); i++) {
            fates_[size_t(pair)][size_t(now_.position[i])] = fate_[i];
        }
    }
    if (!elsewhere_) {
        std::swap(now_, next_);
    }
    held_.assign(staying_.begin(), staying_.end()); // there is room
    std::fill(staged_.begin(), staged_.end(), char(0));
}

void CellTable::fates(int pair, int first, int n, int32_t * out) const {
    const std::vector<int32_t> & next = fates_[size_t(pair)];
    for (int i = 0; i < n; i++) {
        int32_t at = first + i;
        while (at != DROPPED && next[size_t(at)] != at) {
            at = next[size_t(at)];
        }
        out[i] = at;
    }
}

} // namespace kvmerge
