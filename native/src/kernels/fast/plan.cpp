// Which cells to drop and which to merge.
#include "fast.hpp"

#include <algorithm>
#include <cmath>
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
    explicit Heap(const std::vector<double> & cost) : cost_(cost) {}
    void fill(int first, int end) {
        at_.resize(size_t(end));
        heap_.resize(size_t(end - first));
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

// One tensor's cells, read some at a time or one by one. Where they lie transposed, they are turned once: one by one would cost a cache line an
// element.
class Rows {
  public:
    void point_at(const CellView & view, int head, const int32_t * cells, int n) {
        view_ = view;
        head_ = head;
        cells_ = cells;
        if (view.transposed) {
            turned_.resize(std::max(turned_.size(), bytes_of(view.type, size_t(n) * view.dim)));
            copy_transposed(view, head, cells, n, turned_.data());
        }
    }
    int dim() const { return view_.dim; }
    // Cells i .. i+n-1: out [n][dim]
    void read(int i, int n, float * out) const {
        if (view_.transposed) {
            to_float(view_.type, turned_.data() + bytes_of(view_.type, size_t(i) * view_.dim), std::ptrdiff_t(n) * view_.dim,
                     out);
        } else {
            gather_cells({view_, head_, cells_ + i, n, out});
        }
    }

  private:
    CellView view_ = {};
    int head_ = 0;
    const int32_t * cells_ = nullptr;
    std::vector<char> turned_;
};

// A group is named by its first member; until it is merged or dropped, a cell is a group of its own.
class Planner {
  public:
    void run(const PlanGroupsArgs & a) {
        a_ = a;
        keys_.point_at(a.keys, a.head, a.cells, a.n);
        values_.point_at(a.values, a.head, a.cells, a.n);
        rate_.assign(a.rate, a.rate + a.n);
        groups_.assign(size_t(a.n), Group());
        cost_.resize(size_t(a.n));
        vectors_.clear();
        find_mean();
        measure();
        for (int i = a.first; i < a.end; i++) {
            price(i);
        }
        heap_.fill(a.first, a.end);
        choose();
    }

  private:
    struct Group {
        int vectors = -1;                 // in vectors_, once they are asked for: means of the members' keys and values
        double from_mean = 0;             // squared distance of the value from the mean of all
        double apart = 0, keys_apart = 0; // squared distances from the next
        int size = 1;
        int next = -1, previous = -1;    // in position order
        int next_member = -1, last = -1; // of the members
        bool merging = false;            // the cheaper operation is to merge with the next
    };

    Group & group(int i) { return groups_[size_t(i)]; }

    void choose() {
        std::iota(a_.group, a_.group + a_.n, 0);
        *a_.cost = 0;
        for (int done = 0; done < a_.operations; done++) {
            const int g = heap_.cheapest();
            *a_.cost += cost_[size_t(g)];
            if (group(g).merging) {
                const int other = group(g).next;
                absorb(g, other);
                heap_.remove(other);
                reprice(g);
            } else {
                heap_.remove(g);
                unlink(g);
                for (int m = g; m >= 0; m = group(m).next_member) {
                    a_.group[m] = -1;
                }
            }
            reprice(group(g).previous);
        }
    }

    // The mean of the values, weighted by the rates.
    void find_mean() {
        const int dim = values_.dim();
        mean_.assign(size_t(dim), 0.0f);
        float * const tile = room(tile_, size_t(TILE) * dim);
        const double total = std::accumulate(rate_.begin(), rate_.end(), 0.0);
        for (int i0 = 0; i0 < a_.n; i0 += TILE) {
            const int count = std::min(TILE, a_.n - i0);
            values_.read(i0, count, tile);
            for (int i = 0; i < count; i++) {
                const float share = float(total > 0 ? rate_[size_t(i0 + i)] / total : 1.0 / a_.n);
                const float * const v = tile + std::ptrdiff_t(i) * dim;
#pragma omp simd
                for (int d = 0; d < dim; d++) {
                    mean_[size_t(d)] += share * v[d];
                }
            }
        }
    }

    // What single cells cost needs no more than their distances: nothing is kept of them but that.
    void measure() {
        float * const keys = room(tile_, size_t(TILE + 1) * (keys_.dim() + values_.dim()));
        float * const values = keys + std::ptrdiff_t(TILE + 1) * keys_.dim();
        for (int i0 = a_.first; i0 < a_.end; i0 += TILE) {
            const int last = std::min(i0 + TILE, a_.end - 1); // the next tile's first, for the last distance
            keys_.read(i0, last - i0 + 1, keys);
            values_.read(i0, last - i0 + 1, values);
            for (int i = i0; i < std::min(i0 + TILE, a_.end); i++) {
                Group & g = group(i);
                const float * const k = keys + std::ptrdiff_t(i - i0) * keys_.dim();
                const float * const v = values + std::ptrdiff_t(i - i0) * values_.dim();
                g.from_mean = squared_distance(v, mean_.data(), values_.dim());
                g.next = i + 1 < a_.end ? i + 1 : -1;
                g.previous = i > a_.first ? i - 1 : -1;
                g.last = i;
                if (g.next >= 0) {
                    g.keys_apart = squared_distance(k, k + keys_.dim(), keys_.dim());
                    g.apart = squared_distance(v, v + values_.dim(), values_.dim());
                }
            }
        }
    }

    // Reads a group's key and value, unless they are at hand.
    void fetch(int i) {
        if (group(i).vectors < 0) {
            const size_t at = vectors_.size(), dim_k = size_t(keys_.dim());
            group(i).vectors = int(at);
            vectors_.resize(at + dim_k + values_.dim());
            keys_.read(i, 1, vectors_.data() + at);
            values_.read(i, 1, vectors_.data() + at + dim_k);
        }
    }
    // Until the next fetch.
    float * key(int i) { return vectors_.data() + group(i).vectors; }
    float * value(int i) { return key(i) + keys_.dim(); }

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
        const double sigma = std::sqrt(a_.key_cost * a.keys_apart / keys_.dim());
        // |wa Va + wb Vb - mean|^2 by the parallelogram identity, from distances at hand.
        const double merged_from_mean = std::sqrt(std::fmax(0, wa * a.from_mean + wb * b.from_mean - wa * wb * a.apart));
        const double merge = (ra + rb) * wa * wb * sigma * (std::sqrt(a.apart) + sigma / 2 * merged_from_mean);
        if (merge < cost) {
            cost = merge;
            a.merging = true;
        }
    }

    void absorb(int i, int j) {
        Group &a = group(i), &b = group(j);
        const double rate = rate_[size_t(i)] + rate_[size_t(j)];
        const float share = float(rate_[size_t(j)] / rate);
        fetch(i), fetch(j);
        mix(key(i), key(j), share, keys_.dim() + values_.dim());
        a.from_mean = squared_distance(value(i), mean_.data(), values_.dim());
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

    // After it, or the group next to it, has changed.
    void reprice(int i) {
        if (i < 0) {
            return;
        }
        Group & g = group(i);
        if (g.next >= 0) {
            fetch(i), fetch(g.next);
            g.keys_apart = squared_distance(key(i), key(g.next), keys_.dim());
            g.apart = squared_distance(value(i), value(g.next), values_.dim());
        }
        price(i);
        heap_.changed(i);
    }

    static float * room(std::vector<float> & x, size_t n) {
        x.resize(std::max(x.size(), n));
        return x.data();
    }

    static constexpr int TILE = 64; // cells that are read at once, into memory that stays in the first cache

    PlanGroupsArgs a_ = {};
    Rows keys_, values_;
    std::vector<double> rate_;
    std::vector<float> mean_, tile_, vectors_;
    std::vector<Group> groups_;
    std::vector<double> cost_;
    Heap heap_{cost_};
};

} // namespace

void plan_groups(const PlanGroupsArgs & a) {
    thread_local Planner planner; // its memory stays: at each call new to the process, it would cost as much as the planning
    planner.run(a);
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
