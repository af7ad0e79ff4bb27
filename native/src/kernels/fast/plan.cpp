// Which cells to drop and which to merge.
#include "cheapest.hpp"
#include "fast.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace kvmerge {
namespace KVMERGE_ISA {

static double squared_distance(const float * x, const float * y, int n) {
    Vector sum = {};
    int i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        const Vector d = load(x + i) - load(y + i);
        sum += d * d;
    }
    float rest = 0;
    for (; i < n; i++) {
        rest += (x[i] - y[i]) * (x[i] - y[i]);
    }
    return added_up(sum) + rest;
}

namespace {

constexpr double GONE = INFINITY;                              // the cost of what is no group any more
constexpr double DEAREST = std::numeric_limits<double>::max(); // of one that is

// A group is named by its first member; until it is merged or dropped, a cell is a group of its own.
class Planner {
  public:
    void run(const PlanGroupsArgs & a) {
        a_ = a;
        dim_k_ = a.keys.dim;
        dim_v_ = a.values.dim;
        rate_.assign(a.rate, a.rate + a.n);
        share_.resize(size_t(a.n));
        const double total = std::accumulate(a.rate, a.rate + a.n, 0.0);
        for (int i = 0; i < a.n; i++) {
            share_[size_t(i)] = float(total > 0 ? a.rate[i] / total : 1.0 / a.n);
        }
        from_mean_.resize(size_t(a.n));
        keys_apart_.assign(size_t(a.n), 0);
        apart_.assign(size_t(a.n), 0);
        cost_.assign(size_t(a.n), GONE);
        keys_.clear();
        values_.clear();
        groups_.assign(size_t(a.n), Group());
        for (int i = a.first; i < a.end; i++) {
            Group & g = group(i);
            g.next = i + 1 < a.end ? i + 1 : -1;
            g.previous = i > a.first ? i - 1 : -1;
            g.last = i;
        }
        recall();
        a.values.transposed ? measure_transposed_values() : measure_values();
        measure_pairs();
        price_cells();
        cheapest_.fill();
        if (a.operations > 0) {
            fetch_likely();
        }
        choose();
        remember();
    }

  private:
    struct Group {
        int row = -1; // of keys_ and values_, once they are asked for: means of the members' keys and values
        int size = 1;
        int next = -1, previous = -1;    // in position order
        int next_member = -1, last = -1; // of the members
    };

    Group & group(int i) { return groups_[size_t(i)]; }

    void choose() {
        std::iota(a_.group, a_.group + a_.n, 0);
        *a_.cost = 0;
        for (int done = 0; done < a_.operations; done++) {
            const int g = int(cheapest_.at());
            *a_.cost += cost_[size_t(g)];
            if (cost_[size_t(g)] < drop_price(g)) {
                const int other = group(g).next;
                absorb(g, other);
                remove(other);
                reprice(g);
            } else {
                unlink(g);
                remove(g);
                for (int m = g; m >= 0; m = group(m).next_member) {
                    a_.group[m] = -1;
                }
            }
            reprice(group(g).previous);
        }
    }

    // Takes the distances that a call before has left; the others are to be worked out, of the cells that unknown_ names and those behind them.
    void recall() {
        unknown_.clear();
        for (int c = 0; a_.known && c < a_.keys.n_cells; c += int(64 / sizeof(Neighbour))) {
            __builtin_prefetch(a_.known + c);
        }
        for (int i = a_.first; i + 1 < a_.end; i++) {
            const int32_t cell = a_.cells[i];
            if (a_.known && a_.known[cell].next == a_.cells[i + 1]) {
                keys_apart_[size_t(i)] = a_.known[cell].keys;
                apart_[size_t(i)] = a_.known[cell].values;
            } else {
                unknown_.push_back(i);
            }
        }
    }

    // Calls found(i, rows of cells i and i + 1) for all that is unknown, reading some at a time: rows that are on their way overlap.
    template <class Found>
    void read_unknown(const CellView & view, Found && found) {
        int32_t cells[2 * PAIRS];
        int row[PAIRS];
        float * const rows = room(tile_, size_t(2 * PAIRS) * view.dim);
        for (size_t u0 = 0; u0 < unknown_.size(); u0 += PAIRS) {
            const size_t end = std::min(u0 + PAIRS, unknown_.size());
            int n_rows = 0;
            for (size_t u = u0; u < end; u++) {
                const int i = unknown_[u];
                if (u == u0 || unknown_[u - 1] + 1 != i) {
                    cells[n_rows++] = a_.cells[i];
                }
                row[u - u0] = n_rows - 1;
                cells[n_rows++] = a_.cells[i + 1];
            }
            gather_cells({view, a_.head, cells, n_rows, rows});
            for (size_t u = u0; u < end; u++) {
                const float * const x = rows + std::ptrdiff_t(row[u - u0]) * view.dim;
                found(size_t(unknown_[u]), x, x + view.dim);
            }
        }
    }

    void measure_pairs() {
        read_unknown(a_.keys,
                     [&](size_t i, const float * x, const float * y) { keys_apart_[i] = squared_distance(x, y, dim_k_); });
        read_unknown(a_.values, [&](size_t i, const float * x, const float * y) { apart_[i] = squared_distance(x, y, dim_v_); });
    }

    // The mean of the values, weighted by the rates, and each one's distance from it.
    void measure_values() {
        mean_.assign(size_t(dim_v_), 0.0f);
        float * const tile = room(tile_, size_t(TILE) * dim_v_);
        for (int i0 = 0; i0 < a_.n; i0 += TILE) {
            const int count = std::min(TILE, a_.n - i0);
            gather_cells({a_.values, a_.head, a_.cells + i0, count, tile});
            for (int i = 0; i < count; i++) {
                const float share = share_[size_t(i0 + i)];
                const float * const v = tile + std::ptrdiff_t(i) * dim_v_;
#pragma omp simd
                for (int d = 0; d < dim_v_; d++) {
                    mean_[size_t(d)] += share * v[d];
                }
            }
        }
        for (int i0 = a_.first; i0 < a_.end; i0 += TILE) {
            const int count = std::min(TILE, a_.end - i0);
            gather_cells({a_.values, a_.head, a_.cells + i0, count, tile});
            for (int i = 0; i < count; i++) {
                from_mean_[size_t(i0 + i)] = squared_distance(tile + std::ptrdiff_t(i) * dim_v_, mean_.data(), dim_v_);
            }
        }
    }

    // The same where a dimension's elements lie side by side: in whatever order the cells lie, a few dimensions and a part of the cells at a time, which
    // stays in the first cache.
    void measure_transposed_values() {
        const int n = *std::max_element(a_.cells, a_.cells + a_.n) + 1;
        by_cell_.assign(size_t(n) * 2, 0.0f);
        float *const share = by_cell_.data(), *const from_mean = share + n;
        for (int i = 0; i < a_.n; i++) {
            share[a_.cells[i]] += share_[size_t(i)];
        }
        mean_.assign(size_t(dim_v_ + ROWS - 1), 0.0f);
        for (int d = 0; d < dim_v_; d++) {
            const size_t end = bytes_of(a_.values.type, size_t(n));
            for (size_t at = 0; d + AHEAD < dim_v_ && at < end; at += 64) { // no processor foresees past a page's end
                __builtin_prefetch(element(d + AHEAD, 0) + at);
            }
            for (int c = 0; c < n; c += PART) {
                const int part = std::min(PART, n - c);
                to_float(a_.values.type, element(d, c), part, room(tile_, PART));
                mean_[size_t(d)] += weighted_sum(tile_.data(), share + c, part);
            }
        }
        for (int c = 0; c < n; c += PART) {
            for (int d = 0; d < dim_v_; d += ROWS) {
                add_distances(rows(d, c, std::min(PART, n - c)), mean_.data() + d, std::min(PART, n - c), from_mean + c);
            }
        }
        for (int i = a_.first; i < a_.end; i++) {
            from_mean_[size_t(i)] = from_mean[a_.cells[i]];
        }
    }

    static constexpr int ROWS = 4, PART = 512, AHEAD = 2;

    // Where a dimension of a cell lies, transposed.
    const char * element(int d, int c) const {
        const size_t at = (size_t(a_.head) * dim_v_ + size_t(d)) * size_t(a_.values.n_cells) + size_t(c);
        return static_cast<const char *>(a_.values.data) + bytes_of(a_.values.type, at);
    }
    // Cells c .. c+n-1 of ROWS dimensions from d on, [ROWS][PART]; dimensions that are not there are zero.
    const float * rows(int d, int c, int n) {
        float * const out = room(tile_, size_t(ROWS) * PART);
        for (int r = 0; r < ROWS; r++) {
            if (d + r < dim_v_) {
                to_float(a_.values.type, element(d + r, c), n, out + r * PART);
            } else {
                std::fill(out + r * PART, out + r * PART + n, 0.0f);
            }
        }
        return out;
    }

    // Elements without a weight may be anything: nobody has written there yet.
    static float weighted_sum(const float * x, const float * weight, int n) {
        Vector sum[2] = {};
        int i = 0;
        for (; i + 2 * WIDTH <= n; i += 2 * WIDTH) {
            for (int k = 0; k < 2; k++) {
                const Vector w = load(weight + i + k * WIDTH);
                sum[k] += w != 0 ? w * load(x + i + k * WIDTH) : Vector{};
            }
        }
        float rest = 0;
        for (; i < n; i++) {
            rest += weight[i] != 0 ? weight[i] * x[i] : 0;
        }
        return added_up(sum[0] + sum[1]) + rest;
    }

    static void add_distances(const float * rows, const float * mean, int n, float * distance) {
        const auto square = [](float x) { return x * x; };
        const float m0 = mean[0], m1 = mean[1], m2 = mean[2], m3 = mean[3];
#pragma omp simd
        for (int i = 0; i < n; i++) {
            distance[i] += (square(rows[i] - m0) + square(rows[PART + i] - m1)) +
                           (square(rows[2 * PART + i] - m2) + square(rows[3 * PART + i] - m3));
        }
    }

    // Leaves what the next call needs: the distances of cells that stay as they are, and next to each other.
    void remember() {
        for (int i = a_.first; a_.known && i < a_.end; i++) {
            const int next = group(i).next;
            const bool stays = cost_[size_t(i)] != GONE && group(i).size == 1 && next >= 0 && group(next).size == 1;
            a_.known[a_.cells[i]] = {stays ? a_.cells[next] : -1, float(keys_apart_[size_t(i)]), float(apart_[size_t(i)])};
        }
    }

    // Reads what the choice will look at first, in one go: the cheapest operations' groups and those beside them.
    void fetch_likely() {
        sorted_.assign(cost_.begin() + a_.first, cost_.begin() + a_.end);
        const auto last = sorted_.begin() + (a_.operations - 1);
        std::nth_element(sorted_.begin(), last, sorted_.end());
        likely_.clear();
        int end = a_.first; // of what is on the list, or was looked at and is not
        for (int i = a_.first; i < a_.end; i++) {
            if (cost_[size_t(i)] <= *last) {
                const int after = cost_[size_t(i)] < drop_price(i) ? 3 : 2;
                for (end = std::max(end, i - 1); end < std::min(i + after, a_.end); end++) {
                    group(end).row = int(likely_.size());
                    likely_.push_back(a_.cells[end]);
                }
            }
        }
        keys_.resize(likely_.size() * size_t(dim_k_));
        values_.resize(likely_.size() * size_t(dim_v_));
        gather_cells({a_.keys, a_.head, likely_.data(), int(likely_.size()), keys_.data()});
        gather_cells({a_.values, a_.head, likely_.data(), int(likely_.size()), values_.data()});
    }
    // Reads a group's key and value, unless they are at hand.
    void fetch(int i) {
        if (group(i).row < 0) {
            group(i).row = int(keys_.size() / size_t(dim_k_));
            keys_.resize(keys_.size() + size_t(dim_k_));
            values_.resize(values_.size() + size_t(dim_v_));
            gather_cells({a_.keys, a_.head, a_.cells + i, 1, key(i)});
            gather_cells({a_.values, a_.head, a_.cells + i, 1, value(i)});
        }
    }
    // Until the next fetch.
    float * key(int i) { return keys_.data() + std::ptrdiff_t(group(i).row) * dim_k_; }
    float * value(int i) { return values_.data() + std::ptrdiff_t(group(i).row) * dim_v_; }

    double drop_price(int i) const { return drop_price(rate_[size_t(i)], from_mean_[size_t(i)]); }
    static double drop_price(double rate, double from_mean) { return bounded(rate * std::sqrt(from_mean)); }
    // In place of NaN and infinity, which overflowed cells bring.
    static double bounded(double price) { return price < DEAREST ? price : DEAREST; }

    // Of merging two groups; what nobody attends to has nothing to give to a merged cell.
    double merge_price(double ra, double rb, double from_mean_a, double from_mean_b, double keys_apart, double apart) const {
        const double wa = ra / (ra + rb), wb = 1 - wa;
        const double sigma = std::sqrt(a_.key_cost * keys_apart / dim_k_);
        // |wa Va + wb Vb - mean|^2 by the parallelogram identity, from distances at hand.
        const double merged = wa * from_mean_a + wb * from_mean_b - wa * wb * apart;
        const double merged_from_mean = std::sqrt(merged > 0 ? merged : 0);
        const double price = (ra + rb) * wa * wb * sigma * (std::sqrt(apart) + sigma / 2 * merged_from_mean);
        return ra == 0 || rb == 0 ? DEAREST : bounded(price);
    }

    // Of all groups, while all are single cells.
    void price_cells() {
        const bool may_merge = a_.largest_group >= 2;
        const double *const rate = rate_.data(), *const from_mean = from_mean_.data(), *const apart = apart_.data(),
                            *const keys_apart = keys_apart_.data();
        double * const cost = cost_.data();
#pragma omp simd
        for (int i = a_.first; i < a_.end - 1; i++) {
            const double drop = drop_price(rate[i], from_mean[i]);
            const double merge = merge_price(rate[i], rate[i + 1], from_mean[i], from_mean[i + 1], keys_apart[i], apart[i]);
            cost[i] = may_merge && merge < drop ? merge : drop;
        }
        if (a_.first < a_.end) {
            cost[a_.end - 1] = drop_price(a_.end - 1);
        }
    }

    // After it, or the group next to it, has changed.
    void reprice(int i) {
        if (i < 0) {
            return;
        }
        const int next = group(i).next;
        double cost = drop_price(i);
        if (next >= 0) {
            fetch(i), fetch(next);
            keys_apart_[size_t(i)] = squared_distance(key(i), key(next), dim_k_);
            apart_[size_t(i)] = squared_distance(value(i), value(next), dim_v_);
            if (group(i).size + group(next).size <= a_.largest_group) {
                cost = std::min(cost, merge_price(rate_[size_t(i)], rate_[size_t(next)], from_mean_[size_t(i)],
                                                  from_mean_[size_t(next)], keys_apart_[size_t(i)], apart_[size_t(i)]));
            }
        }
        cost_[size_t(i)] = cost;
        cheapest_.changed(size_t(i));
    }

    void remove(int i) {
        cost_[size_t(i)] = GONE;
        cheapest_.changed(size_t(i));
    }

    void absorb(int i, int j) {
        Group &a = group(i), &b = group(j);
        const double rate = rate_[size_t(i)] + rate_[size_t(j)];
        const float share = float(rate_[size_t(j)] / rate);
        fetch(i), fetch(j);
        mix(key(i), key(j), share, dim_k_);
        mix(value(i), value(j), share, dim_v_);
        from_mean_[size_t(i)] = squared_distance(value(i), mean_.data(), dim_v_);
        a.size += b.size;
        rate_[size_t(i)] = rate;
        group(a.last).next_member = j;
        a.last = b.last;
        for (int m = j; m >= 0; m = group(m).next_member) {
            a_.group[m] = i;
        }
        unlink(j);
    }

    static void mix(float * x, const float * y, float share, int n) {
#pragma omp simd
        for (int i = 0; i < n; i++) {
            x[i] += share * (y[i] - x[i]);
        }
    }

    void unlink(int i) {
        const Group & g = group(i);
        if (g.previous >= 0) {
            group(g.previous).next = g.next;
        }
        if (g.next >= 0) {
            group(g.next).previous = g.previous;
        }
    }

    static float * room(std::vector<float> & x, size_t n) {
        x.resize(std::max(x.size(), n));
        return x.data();
    }

    static constexpr int TILE = 64, PAIRS = 256; // that are read at once, into memory that stays in the first caches

    PlanGroupsArgs a_ = {};
    int dim_k_ = 0, dim_v_ = 0;
    std::vector<float> mean_, share_, by_cell_, tile_, keys_, values_;
    std::vector<int> unknown_;
    std::vector<int32_t> likely_;
    std::vector<double> sorted_;
    std::vector<Group> groups_;
    // By group: squared distances of its value from the mean of all, of its key and value from those of the next; its price.
    std::vector<double> rate_, from_mean_, keys_apart_, apart_, cost_;
    Cheapest cheapest_{cost_};
};

} // namespace

void plan_groups(const PlanGroupsArgs & a) {
    thread_local Planner planner; // its memory stays: at each call new to the process, it would cost as much as the planning
    planner.run(a);
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
