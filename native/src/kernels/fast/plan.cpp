// Which cells to drop and which to merge.
#include "fast.hpp"

#include <cmath>
#include <memory>
#include <numeric>
#include <vector>

namespace kvmerge {
namespace KVMERGE_ISA {

// Lanes of their own and a tree to add them up: of a reduction that is left to the compiler, the last step takes longer than all else.
static double squared_distance(const float * x, const float * y, int n) {
    constexpr int LANES = 16;
    float lane[LANES] = {};
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
#pragma omp simd
        for (int j = 0; j < LANES; j++) {
            const float d = x[i + j] - y[i + j];
            lane[j] += d * d;
        }
    }
    for (; i < n; i++) {
        const float d = x[i] - y[i];
        lane[0] += d * d;
    }
    for (int width = LANES / 2; width > 0; width /= 2) {
        for (int j = 0; j < width; j++) {
            lane[j] += lane[j + width];
        }
    }
    return lane[0];
}

namespace {

// Cells [first, end) ordered by cost, the cheapest on top; ties to the smaller index.
class Heap {
  public:
    Heap(const std::vector<double> & cost, int first, int end) : cost_(cost), at_(size_t(end)), heap_(size_t(end - first)) {
        std::iota(heap_.begin(), heap_.end(), first);
        for (int i = 0; i < size(); i++) {
            at_[size_t(heap_[size_t(i)])] = i;
        }
        for (int i = size() / 2; i-- > 0;) {
            sink(i);
        }
    }
    int cheapest() const { return heap_[0]; }
    void changed(int cell) {
        const int i = at_[size_t(cell)];
        if (!rise(i)) {
            sink(i);
        }
    }
    void remove(int cell) {
        const int i = at_[size_t(cell)], last = heap_.back();
        heap_.pop_back();
        if (cell != last) {
            put(i, last);
            changed(last);
        }
    }

  private:
    int size() const { return int(heap_.size()); }
    bool before(int a, int b) const {
        const double x = cost_[size_t(a)], y = cost_[size_t(b)];
        return x < y || (x == y && a < b);
    }
    void put(int i, int cell) {
        heap_[size_t(i)] = cell;
        at_[size_t(cell)] = i;
    }
    bool rise(int i) {
        const int cell = heap_[size_t(i)], from = i;
        for (; i > 0 && before(cell, heap_[size_t((i - 1) / 2)]); i = (i - 1) / 2) {
            put(i, heap_[size_t((i - 1) / 2)]);
        }
        put(i, cell);
        return i != from;
    }
    void sink(int i) {
        const int cell = heap_[size_t(i)];
        for (int child; (child = 2 * i + 1) < size(); i = child) {
            if (child + 1 < size() && before(heap_[size_t(child) + 1], heap_[size_t(child)])) {
                child++;
            }
            if (!before(heap_[size_t(child)], cell)) {
                break;
            }
            put(i, heap_[size_t(child)]);
        }
        put(i, cell);
    }

    const std::vector<double> & cost_;
    std::vector<int> at_; // by cell: its place
    std::vector<int> heap_;
};

// A group is named by its first member; until it is merged or dropped, a cell is a group of its own.
class Planner {
  public:
    explicit Planner(const PlanGroupsArgs & a)
        : a_(a), rate_(a.rate, a.rate + a.n), mean_(size_t(a.dim_v)), groups_(size_t(a.n)) {
        const double total = std::accumulate(rate_.begin(), rate_.end(), 0.0);
        for (int i = 0; i < a.n; i++) {
            const float share = float(total > 0 ? rate_[size_t(i)] / total : 1.0 / a.n);
            const float * const v = a.values + std::ptrdiff_t(i) * a.dim_v;
#pragma omp simd
            for (int d = 0; d < a.dim_v; d++) {
                mean_[size_t(d)] += share * v[d];
            }
        }
        cost_.assign(size_t(a.n), 0.0);
        for (int i = a.first; i < a.end; i++) {
            Group & g = group(i);
            g.key = a.keys + std::ptrdiff_t(i) * a.dim_k;
            g.value = a.values + std::ptrdiff_t(i) * a.dim_v;
            g.from_mean = squared_distance(g.value, mean_.data(), a.dim_v);
            g.next = i + 1 < a.end ? i + 1 : -1;
            g.previous = i > a.first ? i - 1 : -1;
            g.last = i;
        }
        for (int i = a.first; i < a.end; i++) {
            price(i);
        }
    }

    void run() {
        std::iota(a_.group, a_.group + a_.n, 0);
        *a_.cost = 0;
        Heap heap(cost_, a_.first, a_.end);
        for (int done = 0; done < a_.operations; done++) {
            const int g = heap.cheapest();
            *a_.cost += cost_[size_t(g)];
            if (group(g).merging) {
                const int other = group(g).next;
                absorb(g, other);
                heap.remove(other);
                reprice(heap, g);
            } else {
                heap.remove(g);
                unlink(g);
                for (int m = g; m >= 0; m = group(m).next_member) {
                    a_.group[m] = -1;
                }
            }
            reprice(heap, group(g).previous);
        }
    }

  private:
    struct Group {
        const float *key = nullptr, *value = nullptr; // means of the members
        std::unique_ptr<float[]> own;                 // where they are, of more than one
        double from_mean = 0;                         // squared distance of the value from the mean of all
        int size = 1;
        int next = -1, previous = -1;    // in position order
        int next_member = -1, last = -1; // of the members
        bool merging = false;            // the cheaper operation is to merge with the next
    };

    Group & group(int i) { return groups_[size_t(i)]; }

    // Sets the cheaper operation of a group and its price.
    void price(int i) {
        Group & a = group(i);
        const double ra = rate_[size_t(i)];
        double & cost = cost_[size_t(i)];
        cost = ra * std::sqrt(a.from_mean);
        a.merging = false;
        if (a.next < 0) {
            return;
        }
        const Group & b = group(a.next);
        const double rb = rate_[size_t(a.next)];
        if (a.size + b.size > a_.largest_group || ra == 0 || rb == 0) {
            return; // what nobody attends to has nothing to give to a merged cell
        }
        const double wa = ra / (ra + rb), wb = 1 - wa;
        const double apart = squared_distance(a.value, b.value, a_.dim_v);
        const double sigma = std::sqrt(a_.key_cost * squared_distance(a.key, b.key, a_.dim_k) / a_.dim_k);
        // |wa Va + wb Vb - mean|^2 by the parallelogram identity, from distances at hand.
        const double merged_from_mean = std::sqrt(std::fmax(0, wa * a.from_mean + wb * b.from_mean - wa * wb * apart));
        const double merge = (ra + rb) * wa * wb * sigma * (std::sqrt(apart) + sigma / 2 * merged_from_mean);
        if (merge < cost) {
            cost = merge;
            a.merging = true;
        }
    }

    void absorb(int i, int j) {
        Group &a = group(i), &b = group(j);
        const double rate = rate_[size_t(i)] + rate_[size_t(j)];
        const float share = float(rate_[size_t(j)] / rate);
        std::unique_ptr<float[]> own(new float[size_t(a_.dim_k) + a_.dim_v]);
        mix(a.key, b.key, share, a_.dim_k, own.get());
        mix(a.value, b.value, share, a_.dim_v, own.get() + a_.dim_k);
        a.own = std::move(own);
        a.key = a.own.get();
        a.value = a.own.get() + a_.dim_k;
        a.from_mean = squared_distance(a.value, mean_.data(), a_.dim_v);
        a.size += b.size;
        rate_[size_t(i)] = rate;
        group(a.last).next_member = j;
        a.last = b.last;
        for (int m = j; m >= 0; m = group(m).next_member) {
            a_.group[m] = i;
        }
        unlink(j);
    }

    static void mix(const float * x, const float * y, float share, int n, float * out) {
#pragma omp simd
        for (int i = 0; i < n; i++) {
            out[i] = x[i] + share * (y[i] - x[i]);
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

    void reprice(Heap & heap, int i) {
        if (i >= 0) {
            price(i);
            heap.changed(i);
        }
    }

    const PlanGroupsArgs & a_;
    std::vector<double> rate_;
    std::vector<float> mean_; // of the values, weighted by the rates
    std::vector<Group> groups_;
    std::vector<double> cost_;
};

} // namespace

void plan_groups(const PlanGroupsArgs & a) {
    Planner(a).run();
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
