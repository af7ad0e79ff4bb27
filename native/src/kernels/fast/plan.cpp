// Foreseen attention, and which cells to drop and which to merge by it.
#include "cheapest.hpp"
#include "fast.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

namespace kvmerge {
namespace KVMERGE_ISA {

void expected_attention(const ExpectedAttentionArgs & a) {
    std::vector<float> padded(size_t(a.n) + 2); // a neighbour on both sides
    float * const log = padded.data() + 1;
    const float least = float(a.least), w0 = a.weight[0], w1 = a.weight[1], w2 = a.weight[2], w3 = a.weight[3];
    const double * const rate = a.rate;
#pragma omp simd
    for (int i = 0; i < a.n; i++) {
        log[i] = log_normal(std::max(float(rate[i]) + least, 1.2e-38f));
    }
    log[-1] = log[0], log[a.n] = log[a.n - 1];
    const float * const prior = a.prior;
    const int32_t * const position = a.position;
    double * const expected = a.expected;
    const int32_t now = a.now;
#pragma omp simd
    for (int i = 0; i < a.n; i++) {
        const float sum =
            prior[i] + w0 * log[i] + w1 * log[i - 1] + w2 * log[i + 1] + w3 * log_normal(float(now - position[i]));
        expected[i] = exp_bounded(sum > 88.0f ? 88.0f : sum); // NaN stays
    }
}

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

constexpr double GONE = INFINITY;                              // the price of a group that is no more
constexpr double DEAREST = std::numeric_limits<double>::max(); // the highest price of a group that is there

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
        if (a.values.transposed) {
            with_elements(a.values.type, a.values.data, [&](const auto * x) { measure_transposed_values(x); });
        } else {
            measure_values();
        }
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
        int row = -1; // where keys_ and values_ have the means of its members, once they were asked for
        int size = 1;
        int next = -1, previous = -1;    // groups, in position order
        int next_member = -1, last = -1; // the member after this one, and the last
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

    // Takes the distances that earlier calls found. unknown_ lists the cells whose distance from the next one is still
    // to be worked out.
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

    // Calls found(i, row of cell i, row of cell i + 1) for all unknown distances. Reads many rows at a time, so that
    // the waits for memory overlap.
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
        const auto key_distance = [&](size_t i, const float * x, const float * y) {
            keys_apart_[i] = squared_distance(x, y, dim_k_);
        };
        const auto value_distance = [&](size_t i, const float * x, const float * y) {
            apart_[i] = squared_distance(x, y, dim_v_);
        };
        read_unknown(a_.keys, key_distance);
        read_unknown(a_.values, value_distance);
    }

    // Works out the mean of the values, weighted by the rates, and the distance of each value from it.
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

    // The same for transposed values: a few dimensions at a time, and cells in the order in which they lie.
    template <class T>
    void measure_transposed_values(const T * data) {
        const int n = *std::max_element(a_.cells, a_.cells + a_.n) + 1;
        by_cell_.assign(size_t(n) * 2, 0.0f);
        float *const share = by_cell_.data(), *const from_mean = share + n;
        for (int i = 0; i < a_.n; i++) {
            share[a_.cells[i]] += share_[size_t(i)];
        }
        mean_.resize(size_t(dim_v_));
        const std::ptrdiff_t stride = a_.values.n_cells;
        const T * const head = data + std::ptrdiff_t(a_.head) * dim_v_ * stride;
        int d = 0;
        for (; d + ROWS <= dim_v_; d += ROWS) {
            weighted_sums<ROWS>(head + d * stride, stride, share, n, mean_.data() + d);
        }
        for (; d < dim_v_; d++) {
            weighted_sums<1>(head + d * stride, stride, share, n, mean_.data() + d);
        }
        for (d = 0; d + ROWS <= dim_v_; d += ROWS) {
            add_distances<ROWS>(head + d * stride, stride, mean_.data() + d, n, from_mean);
        }
        for (; d < dim_v_; d++) {
            add_distances<1>(head + d * stride, stride, mean_.data() + d, n, from_mean);
        }
        for (int i = a_.first; i < a_.end; i++) {
            from_mean_[size_t(i)] = from_mean[a_.cells[i]];
        }
    }

    static constexpr int ROWS = 4;

    // Elements without a weight may hold anything, since nobody has written there yet.
    template <int N, class T>
    static void weighted_sums(const T * rows, std::ptrdiff_t stride, const float * weight, int n, float * out) {
        Vector sum[N] = {};
        int i = 0;
        for (; i + WIDTH <= n; i += WIDTH) {
            const Vector w = load(weight + i);
            for (int r = 0; r < N; r++) {
                __builtin_prefetch(rows + (N + r) * stride + i); // no processor prefetches across the end of a page
                const Vector x = load(rows + r * stride + i);
                sum[r] += w * (w != 0 ? x : Vector{});
            }
        }
        for (int r = 0; r < N; r++) {
            float rest = 0;
            for (int j = i; j < n; j++) {
                rest += weight[j] != 0 ? weight[j] * value_of(rows[r * stride + j]) : 0;
            }
            out[r] = added_up(sum[r]) + rest;
        }
    }

    template <int N, class T>
    static void add_distances(const T * rows, std::ptrdiff_t stride, const float * mean, int n, float * distance) {
        int i = 0;
        for (; i + WIDTH <= n; i += WIDTH) {
            Vector sum = load(distance + i);
            for (int r = 0; r < N; r++) {
                const Vector apart = load(rows + r * stride + i) - mean[r];
                sum += apart * apart;
            }
            store(distance + i, sum);
        }
        for (; i < n; i++) {
            for (int r = 0; r < N; r++) {
                const float apart = value_of(rows[r * stride + i]) - mean[r];
                distance[i] += apart * apart;
            }
        }
    }

    // Leaves the next call the distances of those cells that stay as they are and next to each other.
    void remember() {
        for (int i = a_.first; a_.known && i < a_.end; i++) {
            const int next = group(i).next;
            const bool stays = cost_[size_t(i)] != GONE && group(i).size == 1 && next >= 0 && group(next).size == 1;
            a_.known[a_.cells[i]] = {stays ? a_.cells[next] : -1, float(keys_apart_[size_t(i)]),
                                     float(apart_[size_t(i)])};
        }
    }

    // Reads in one go what the choice will look at first: the groups of the cheapest operations, and those beside them.
    void fetch_likely() {
        // A sample of the prices tells which those are. It is wrong about a few cells, which costs little.
        constexpr int STEP = 8;
        sample_.clear();
        for (int i = a_.first; i < a_.end; i += STEP) {
            sample_.push_back(cost_[size_t(i)]);
        }
        const auto last = sample_.begin() + std::min(a_.operations / STEP, int(sample_.size()) - 1);
        std::nth_element(sample_.begin(), last, sample_.end());
        likely_.clear();
        int end = a_.first; // cells before it are on the list, or were looked at and are not
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
    // Reads a group's key and value, unless they were read before.
    void fetch(int i) {
        if (group(i).row < 0) {
            group(i).row = int(keys_.size() / size_t(dim_k_));
            keys_.resize(keys_.size() + size_t(dim_k_));
            values_.resize(values_.size() + size_t(dim_v_));
            gather_cells({a_.keys, a_.head, a_.cells + i, 1, key(i)});
            gather_cells({a_.values, a_.head, a_.cells + i, 1, value(i)});
        }
    }
    // Valid until the next fetch.
    float * key(int i) { return keys_.data() + std::ptrdiff_t(group(i).row) * dim_k_; }
    float * value(int i) { return values_.data() + std::ptrdiff_t(group(i).row) * dim_v_; }

    double drop_price(int i) const { return drop_price(rate_[size_t(i)], from_mean_[size_t(i)]); }
    static double drop_price(double rate, double from_mean) { return bounded(rate * std::sqrt(from_mean)); }
    // Replaces NaN and infinity, which come from cells that overflowed.
    static double bounded(double price) { return price < DEAREST ? price : DEAREST; }

    // The price of merging two groups. One that nobody attends to has nothing to give to a merged cell.
    double merge_price(double ra, double rb, double from_mean_a, double from_mean_b, double keys_apart,
                       double apart) const {
        const double wa = ra / (ra + rb), wb = 1 - wa;
        const double sigma = std::sqrt(a_.key_cost * keys_apart / dim_k_);
        // |wa Va + wb Vb - mean|^2 by the parallelogram identity, from distances that are known already.
        const double merged = wa * from_mean_a + wb * from_mean_b - wa * wb * apart;
        const double merged_from_mean = std::sqrt(merged > 0 ? merged : 0);
        const double price = (ra + rb) * wa * wb * sigma * (std::sqrt(apart) + sigma / 2 * merged_from_mean);
        return ra == 0 || rb == 0 ? DEAREST : bounded(price);
    }

    // The prices of all groups, while all are single cells.
    void price_cells() {
        const bool may_merge = a_.largest_group >= 2;
        const double *const rate = rate_.data(), *const from_mean = from_mean_.data(), *const apart = apart_.data(),
                            *const keys_apart = keys_apart_.data();
        double * const cost = cost_.data();
#pragma omp simd
        for (int i = a_.first; i < a_.end - 1; i++) {
            const double drop = drop_price(rate[i], from_mean[i]);
            const double merge =
                merge_price(rate[i], rate[i + 1], from_mean[i], from_mean[i + 1], keys_apart[i], apart[i]);
            cost[i] = may_merge && merge < drop ? merge : drop;
        }
        if (a_.first < a_.end) {
            cost[a_.end - 1] = drop_price(a_.end - 1);
        }
    }

    // The price of one group, after it or the group next to it has changed.
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

    static constexpr int TILE = 64, PAIRS = 256; // cells read at once, into memory that stays in the first caches

    PlanGroupsArgs a_ = {};
    int dim_k_ = 0, dim_v_ = 0;
    std::vector<float> mean_, share_, by_cell_, tile_, keys_, values_;
    std::vector<int> unknown_;
    std::vector<int32_t> likely_;
    std::vector<double> sample_;
    std::vector<Group> groups_;
    // By group: the squared distances of its value from the mean of all, and of its key and value from those of the
    // next group; its price.
    std::vector<double> rate_, from_mean_, keys_apart_, apart_, cost_;
    Cheapest cheapest_{cost_};
};

} // namespace

void plan_groups(const PlanGroupsArgs & a) {
    // Its memory is kept from call to call: the page faults of new memory would take as long as the planning.
    thread_local Planner planner;
    planner.run(a);
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
