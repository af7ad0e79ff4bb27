// The greedy choice of what to drop and what to merge, on the GPU: a thread block a KV head. Operations follow each
// other, so what one takes is the time that memory takes to answer, again and again: a head's groups lie in shared
// memory where they fit, and all cells that an operation looks at are asked for at once.
#include "elements.cuh"
#include "heads.cuh"

#include <algorithm>
#include <cfloat>

namespace kvmerge {
namespace cuda {

constexpr int PLAN_THREADS = 128, PLAN_WARPS = PLAN_THREADS / WARP;
constexpr int PLAN_BLOCKS = 8;                 // a multiprocessor is to hold at once
constexpr int MOST_RUNS = 2048;                // of prices, whose least ones are in shared memory
constexpr int MOST_SHARED = 48 << 10;          // bytes of shared memory that every GPU gives
constexpr float GONE = INFINITY;               // the price of a group that is no more
constexpr float DEAREST = FLT_MAX;             // the highest price of a group that is there
constexpr size_t MOST_ROOM = size_t(64) << 20; // of all thread blocks that run at once, where shared memory is too
                                               // small

// A thread block's arrays, by cell. A group is named by its first member. Rates are shares of all cells' together, so
// that single precision is enough for them.
template <class Index>
struct Room {
    static constexpr size_t BYTES = 4 * sizeof(float) + 4 * sizeof(Index); // a cell
    static constexpr Index NONE = Index(-1);

    float *price, *rate, *weight; // a group's; a member's in its group
    float * from_mean;            // squared distance of a group's value from the mean
    Index *next, *previous;       // groups, in position order
    Index *next_member, *size;

    __device__ Room(char * memory, int n) {
        price = reinterpret_cast<float *>(memory), rate = price + n, weight = rate + n, from_mean = weight + n;
        next = reinterpret_cast<Index *>(from_mean + n), previous = next + n;
        next_member = previous + n, size = next_member + n;
    }
};

// NaN and infinity come from cells that overflowed.
__device__ inline float bounded(float price) {
    return price < DEAREST ? price : DEAREST;
}

__device__ inline float drop_price(float rate, float from_mean) {
    return bounded(rate * sqrtf(from_mean));
}

// One that nobody attends to has nothing to give to a merged cell.
__device__ inline float merge_price(float ra, float rb, float from_mean_a, float from_mean_b, float keys_apart,
                                    float apart, float key_cost) {
    const float wa = ra / (ra + rb), wb = 1 - wa, sigma = sqrtf(key_cost * keys_apart);
    // |wa Va + wb Vb - mean|^2 by the parallelogram identity, from distances that are known already.
    const float merged = wa * from_mean_a + wb * from_mean_b - wa * wb * apart;
    const float price = (ra + rb) * wa * wb * sigma * (sqrtf(apart) + sigma / 2 * sqrtf(merged > 0 ? merged : 0.0f));
    return ra == 0 || rb == 0 ? DEAREST : bounded(price);
}

__device__ inline unsigned warp_least(unsigned x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    return __reduce_min_sync(ALL_LANES, x);
#else
    for (int o = WARP / 2; o > 0; o /= 2) {
        x = min(x, __shfl_xor_sync(ALL_LANES, x, o));
    }
    return x;
#endif
}

// The least of prices, which are not negative, so that their bits are in their order.
__device__ inline float warp_least_price(float x) {
    return __uint_as_float(warp_least(__float_as_uint(x)));
}

// What a warp found out about a group: squared distances from the next one and from the mean.
struct Found {
    float apart, from_mean;
};

// One head's planning. Methods that start with all_ are for all threads of the block, others for a warp or a thread.
template <class Index>
struct HeadPlan {
    const PlanGroupsArgs & a; // shared
    Room<Index> r;
    float * mean;  // [dim of values, rounded up to four], shared
    float * least; // [n_runs], shared: of each run of prices
    int run, n_runs;
    float key_cost; // of a dimension

    static __device__ int lane() { return int(threadIdx.x % WARP); }
    static __device__ int warp() { return int(threadIdx.x / WARP); }
    static __device__ int index(Index i) { return i == Room<Index>::NONE ? -1 : int(i); }
    __device__ int next(int i) const { return index(r.next[i]); }
    __device__ int previous(int i) const { return index(r.previous[i]); }
    __device__ int next_member(int i) const { return index(r.next_member[i]); }

    __device__ void all_start(double inverse) {
        for (int i = threadIdx.x; i < a.n; i += PLAN_THREADS) {
            const bool inside = i >= a.first && i < a.end;
            a.group[i] = i;
            r.rate[i] = float(a.rate[i] * inverse);
            r.weight[i] = 1;
            r.price[i] = GONE;
            r.size[i] = 1;
            r.next[i] = inside && i + 1 < a.end ? Index(i + 1) : Room<Index>::NONE;
            r.previous[i] = inside && i > a.first ? Index(i - 1) : Room<Index>::NONE;
            r.next_member[i] = Room<Index>::NONE;
        }
    }

    // Loads x[k] from the cell that lane first + k has, for first + k < n, from d0 on four elements a lane.
    static __device__ void load(const Elements & from, int mine, int first, int n, int d0, float4 (&x)[MANY]) {
        int cell[MANY];
        for (int k = 0; k < MANY; k++) {
            cell[k] = __shfl_sync(ALL_LANES, mine, first + k);
        }
        from.load(cell, n - first, d0 + 4 * lane(), x);
    }

    // Calls body(i, n, x) with elements d .. d + 3, d being the lane's from d0 on, of the next n <= MANY cells of this
    // warp's part of [from, end).
    template <class Body>
    __device__ void each_cell(const Elements & from_view, int from, int end, int d0, Body && body) const {
        for (int base = from + warp() * WARP; base < end; base += PLAN_THREADS) {
            const int mine = base + lane() < end ? a.cells[base + lane()] : 0, n = min(WARP, end - base);
            for (int j = 0; j < n; j += MANY) {
                float4 x[MANY];
                load(from_view, mine, j, n, d0, x);
                body(base + j, min(MANY, n - j), x);
            }
        }
    }

    // The mean of the values, weighted by the rates. `part`: shared, [PLAN_WARPS][DIMENSIONS].
    __device__ void all_mean(const Elements & values, bool uniform, float * part) {
        const int dim = values.view.dim;
        const auto share = [&](int i) { return uniform ? 1.0f / float(a.n) : r.rate[i]; };
        if (values.view.transposed) { // cells lie side by side: a warp takes a dimension
            for (int d = warp(); d < dim; d += PLAN_WARPS) {
                float sum = 0;
                for (int i = lane(); i < a.n; i += WARP) {
                    sum += share(i) * load_cell(values.view, a.head, a.cells[i], d);
                }
                sum = warp_sum(sum);
                if (lane() == 0) {
                    mean[d] = sum;
                }
            }
            __syncthreads();
            return;
        }
        for (int d0 = 0; d0 < dim; d0 += DIMENSIONS) {
            float4 sum = {0, 0, 0, 0};
            each_cell(values, 0, a.n, d0, [&](int i, int n, const float4 * x) {
                for (int k = 0; k < MANY; k++) {
                    add(sum, k < n ? share(i + k) : 0.0f, x[k]);
                }
            });
            float * const to = part + warp() * DIMENSIONS + 4 * lane();
            to[0] = sum.x, to[1] = sum.y, to[2] = sum.z, to[3] = sum.w;
            __syncthreads();
            for (int d = threadIdx.x; d < DIMENSIONS && d0 + d < dim; d += PLAN_THREADS) {
                float all = 0;
                for (int w = 0; w < PLAN_WARPS; w++) {
                    all += part[w * DIMENSIONS + d];
                }
                mean[d0 + d] = all;
            }
            __syncthreads();
        }
    }

    // Elements d .. d + 3 of the mean.
    __device__ float4 mean_at(int d) const {
        const int dim = a.values.dim;
        return {d < dim ? mean[d] : 0, d + 1 < dim ? mean[d + 1] : 0, d + 2 < dim ? mean[d + 2] : 0,
                d + 3 < dim ? mean[d + 3] : 0};
    }

    __device__ void all_from_mean(const Elements & values) {
        const int dim = values.view.dim;
        if (values.view.transposed) { // a thread takes a cell
            for (int i = a.first + int(threadIdx.x); i < a.end; i += PLAN_THREADS) {
                float sum = 0;
                for (int d = 0; d < dim; d++) {
                    const float gap = load_cell(values.view, a.head, a.cells[i], d) - mean[d];
                    sum += gap * gap;
                }
                r.from_mean[i] = sum;
            }
            return;
        }
        for (int d0 = 0; d0 < dim; d0 += DIMENSIONS) {
            const float4 m = mean_at(d0 + 4 * lane());
            each_cell(values, a.first, a.end, d0, [&](int i, int n, float4 * x) {
                for (int k = 0; k < MANY; k++) {
                    add(x[k], -1, m);
                    const float sum = warp_sum(squared(x[k]));
                    if (k < n && lane() == 0) {
                        r.from_mean[i + k] = (d0 > 0 ? r.from_mean[i + k] : 0) + sum;
                    }
                }
            });
        }
    }

    // Whether an earlier call left the distance of cell i from the next one.
    __device__ bool is_known(int i) const { return a.known && a.known[a.cells[i]].next == a.cells[i + 1]; }

    __device__ float price_with(int i, int other, float keys_apart, float apart) const {
        return merge_price(r.rate[i], r.rate[other], r.from_mean[i], r.from_mean[other], keys_apart, apart, key_cost);
    }

    // Prices of single cells. Only distances that no earlier call left are worked out.
    __device__ void all_price(const Elements & keys, const Elements & values) {
        constexpr float LATER = -1;
        for (int i = a.first + int(threadIdx.x); i < a.end; i += PLAN_THREADS) {
            float price = drop_price(r.rate[i], r.from_mean[i]);
            if (i + 1 < a.end && a.largest_group >= 2) {
                const Neighbour known = is_known(i) ? a.known[a.cells[i]] : Neighbour{-1, 0, 0};
                price = known.next >= 0 ? min(price, price_with(i, i + 1, known.keys, known.values)) : LATER;
            }
            r.price[i] = price;
        }
        __syncthreads();
        for (int base = a.first + warp() * WARP; base < a.end; base += PLAN_THREADS) {
            unsigned left = __ballot_sync(ALL_LANES, base + lane() < a.end && r.price[base + lane()] == LATER);
            while (left != 0) {
                price_pairs(keys, values, base, left);
            }
        }
        __syncthreads();
        for (int k = warp(); k < n_runs; k += PLAN_WARPS) {
            refresh(k, -1, 0, -1, 0);
        }
    }

    // Squared distances of n pairs of cells: lane k has one of pair k, lane MANY + k the other.
    __device__ void pairs_apart(const Elements & from, int cell, int n, float (&apart)[MANY]) const {
        for (float & sum : apart) {
            sum = 0;
        }
        for (int d0 = 0; d0 < from.view.dim; d0 += DIMENSIONS) {
            float4 x[MANY], y[MANY];
            load(from, cell, 0, n, d0, x);
            load(from, cell, MANY, MANY + n, d0, y);
            for (int k = 0; k < MANY; k++) {
                add(x[k], -1, y[k]);
                apart[k] += squared(x[k]);
            }
        }
        for (float & sum : apart) {
            sum = warp_sum(sum);
        }
    }

    // Prices of the cells base + b, whose neighbours' distances nobody knows, for the first bits b of `left`, which are
    // cleared. By one warp.
    __device__ void price_pairs(const Elements & keys, const Elements & values, int base, unsigned & left) {
        int cell = 0, i = -1, n = 0;
        for (int k = 0; k < MANY; k++, left &= left - 1) {
            const int at = base + __ffs(int(left)) - 1;
            n += left != 0;
            if (left != 0 && lane() % MANY == k) {
                cell = a.cells[at + lane() / MANY % 2];
            }
            i = left != 0 && lane() == k ? at : i;
        }
        float keys_apart[MANY], apart[MANY];
        pairs_apart(keys, cell, n, keys_apart);
        pairs_apart(values, cell, n, apart);
        for (int k = 0; k < MANY; k++) {
            if (lane() == k && i >= 0) {
                r.price[i] = min(drop_price(r.rate[i], r.from_mean[i]), price_with(i, i + 1, keys_apart[k], apart[k]));
                if (a.known) {
                    a.known[a.cells[i]] = {a.cells[i + 1], keys_apart[k], apart[k]};
                }
            }
        }
    }

    // Finds a run's least price anew, where groups g and p are about to get these prices. By one warp.
    __device__ void refresh(int k, int g, float price_of_g, int p, float price_of_p) {
        float best = GONE;
        for (int i = a.first + k * run + lane(); i < min(a.first + (k + 1) * run, a.end); i += WARP) {
            best = min(best, i == g ? price_of_g : i == p ? price_of_p : r.price[i]);
        }
        best = warp_least_price(best);
        if (lane() == 0) {
            least[k] = best;
        }
    }

    // The cheapest group, the first of equals. Every warp finds it.
    __device__ int cheapest() const {
        float best = GONE;
        unsigned at = 0;
        for (int k = lane(); k < n_runs; k += WARP) {
            if (least[k] < best) {
                best = least[k], at = unsigned(k);
            }
        }
        const float price = warp_least_price(best);
        at = warp_least(best == price ? at : unsigned(n_runs));
        const int end = min(a.first + int(at + 1) * run, a.end);
        for (int base = a.first + int(at) * run;; base += WARP) {
            const unsigned which = __ballot_sync(ALL_LANES, base + lane() < end && r.price[base + lane()] == price);
            if (which != 0 || base + WARP >= end) {
                return base + max(__ffs(int(which)) - 1, 0);
            }
        }
    }

    // Squared distances of group g's mean from that of `other` (-1: none), and from the mean of values where
    // `from_mean` is set. By one warp.
    __device__ Found distances(const Elements & from, int g, int other, bool from_mean) const {
        Found found = {0, 0};
        for (int d0 = 0; d0 < from.view.dim; d0 += DIMENSIONS) {
            const int d = d0 + 4 * lane();
            float4 gap = {0, 0, 0, 0}, own = {0, 0, 0, 0};
            bool second = false;
            for (int m = g; m >= 0;) {
                int cell = 0, n = 0; // each lane takes a member of both groups
                float w = 0;
                for (; m >= 0 && n < WARP; n++) {
                    if (n == lane()) {
                        cell = a.cells[m];
                        w = second ? -r.weight[m] : r.weight[m];
                    }
                    m = next_member(m);
                    if (m < 0 && !second) {
                        m = other, second = true;
                    }
                }
                for (int j = 0; j < n; j += MANY) {
                    float4 x[MANY];
                    load(from, cell, j, n, d0, x);
                    for (int k = 0; k < MANY; k++) {
                        const float weight = __shfl_sync(ALL_LANES, w, j + k);
                        if (j + k < n) {
                            add(gap, weight, x[k]);
                            add(own, max(weight, 0.0f), x[k]);
                        }
                    }
                }
            }
            found.apart += squared(gap);
            if (from_mean) {
                add(own, -1, mean_at(d));
                found.from_mean += squared(own);
            }
        }
        return {warp_sum(found.apart), from_mean ? warp_sum(found.from_mean) : 0.0f};
    }

    __device__ bool may_merge(int g) const {
        const int other = g >= 0 ? next(g) : -1;
        return other >= 0 && int(r.size[g]) + int(r.size[other]) <= a.largest_group;
    }

    __device__ void unlink(int g) {
        const Index before = r.previous[g], after = r.next[g];
        if (before != Room<Index>::NONE) {
            r.next[before] = after;
        }
        if (after != Room<Index>::NONE) {
            r.previous[after] = before;
        }
        r.price[g] = GONE;
        if (a.known) {
            a.known[a.cells[g]].next = -1;
        }
    }

    // By one thread.
    __device__ void absorb(int g, int other) {
        const float rate = r.rate[g] + r.rate[other], wg = r.rate[g] / rate, wo = 1 - wg;
        int last = g;
        for (int m = g; m >= 0; m = next_member(m)) {
            r.weight[m] *= wg;
            last = m;
        }
        for (int m = other; m >= 0; m = next_member(m)) {
            r.weight[m] *= wo;
            a.group[m] = g;
        }
        r.next_member[last] = Index(other);
        r.size[g] = Index(r.size[g] + r.size[other]);
        r.rate[g] = rate;
        unlink(other);
    }

    // By one thread.
    __device__ void drop(int g) {
        for (int m = g; m >= 0; m = next_member(m)) {
            a.group[m] = -1;
        }
        unlink(g);
    }

    // What the next call may believe about a group that changed, or whose neighbour did. By one thread.
    __device__ void remember(int g, bool pair, float keys_apart, float apart) {
        if (a.known && g >= 0) {
            const bool single = pair && r.size[g] == 1 && r.size[next(g)] == 1;
            a.known[a.cells[g]] = {single ? a.cells[next(g)] : -1, keys_apart, apart};
        }
    }

    // `apart`: shared, [4]: of keys and values of the cheapest group from the next, of the one before from the next.
    __device__ void all_choose(const Elements & keys, const Elements & values, double total, float * apart) {
        double cost = 0;
        for (int done = 0; done < a.operations; done++) {
            const int cheap = cheapest(), before = previous(cheap), after = next(cheap);
            const float price = r.price[cheap];
            const bool merges = price < drop_price(r.rate[cheap], r.from_mean[cheap]);
            cost += double(price);
            __syncthreads(); // all have read what is about to change
            if (threadIdx.x == 0) {
                if (merges) {
                    absorb(cheap, after);
                } else {
                    drop(cheap);
                }
            }
            __syncthreads();
            // Two warps look at the merged group, keys and values, two at the one before what has changed.
            const int merged = merges ? cheap : -1, left = warp() < 2 ? merged : before;
            const bool with_next = may_merge(left), from_mean = warp() == 1 && merges;
            if (with_next || from_mean) {
                const Elements from = warp() % 2 == 0 ? keys : values;
                const Found f = distances(from, left, with_next ? next(left) : -1, from_mean);
                if (lane() == 0) {
                    apart[warp()] = f.apart;
                    if (from_mean) {
                        r.from_mean[merged] = f.from_mean;
                    }
                }
            }
            __syncthreads();
            // Two lanes of every warp work out the new prices, so that nobody has to wait for another warp's.
            const int at = lane() == 0 ? merged : before;
            const bool pair = may_merge(at);
            const float keys_apart = apart[lane() == 0 ? 0 : 2], values_apart = apart[lane() == 0 ? 1 : 3];
            float new_price = GONE;
            if (lane() < 2 && at >= 0) {
                new_price = drop_price(r.rate[at], r.from_mean[at]);
                if (pair) {
                    new_price = min(new_price, price_with(at, next(at), keys_apart, values_apart));
                }
                if (warp() == lane()) {
                    remember(at, pair, keys_apart, values_apart);
                }
            }
            const float of_merged = __shfl_sync(ALL_LANES, new_price, 0);
            const float of_before = __shfl_sync(ALL_LANES, new_price, 1);
            const int changed = warp() == 0 ? cheap : warp() == 1 ? before : warp() == 2 && merges ? after : -1;
            if (changed >= 0) {
                refresh((changed - a.first) / run, merged, of_merged, before, of_before);
            }
            if (lane() == 0 && warp() == 0 && merges) {
                r.price[merged] = of_merged;
            }
            if (lane() == 0 && warp() == 1 && before >= 0) {
                r.price[before] = of_before;
            }
            __syncthreads();
        }
        if (threadIdx.x == 0) {
            *a.cost = cost * total;
        }
    }
};

// Without rooms a head's groups are in shared memory.
template <class Index>
__global__ void __launch_bounds__(PLAN_THREADS, PLAN_BLOCKS)
    plan(const PlanGroupsArgs * heads, int n_heads, char * rooms, int most, int largest_dim) {
    __shared__ double totals[PLAN_THREADS];
    __shared__ float part[PLAN_WARPS * DIMENSIONS];
    __shared__ PlanGroupsArgs a;
    KVMERGE_DYNAMIC_SHARED(float, shared);
    for (int index = blockIdx.x; index < n_heads; index += gridDim.x) {
        if (threadIdx.x == 0) {
            a = heads[index];
        }
        __syncthreads();
        const int run = WARP * max(1, (a.end - a.first + WARP * MOST_RUNS - 1) / (WARP * MOST_RUNS));
        const int n_runs = (a.end - a.first + run - 1) / run;
        float * const least = shared + (largest_dim + 3) / 4 * 4;
        char * const room = rooms ? rooms + size_t(blockIdx.x) * most * Room<Index>::BYTES
                                  : reinterpret_cast<char *>(least + min(MOST_RUNS, (most + WARP - 1) / WARP));
        HeadPlan<Index> p = {a, Room<Index>(room, most), shared, least, run, n_runs, float(a.key_cost / a.keys.dim)};
        double sum = 0;
        for (int i = threadIdx.x; i < a.n; i += PLAN_THREADS) {
            sum += a.rate[i];
        }
        totals[threadIdx.x] = sum;
        __syncthreads();
        double total = 0;
        for (int t = 0; t < PLAN_THREADS; t++) {
            total += totals[t];
        }
        const Elements keys(a.keys, a.head), values(a.values, a.head);
        p.all_start(total > 0 ? 1 / total : 0.0);
        __syncthreads();
        p.all_mean(values, !(total > 0), part);
        p.all_from_mean(values);
        __syncthreads();
        p.all_price(keys, values);
        __syncthreads();
        p.all_choose(keys, values, total, part);
        __syncthreads(); // before the next head takes the same room
    }
}

// Where the groups of heads with up to `most` cells are while they are planned.
struct Rooms {
    int most, blocks;
    bool narrow; // 16 bits tell a cell
    size_t shared, bytes;

    Rooms(int n_heads, int n_cells, int largest_dim) : most(n_cells + n_cells % 2), narrow(n_cells < 65535) {
        const size_t cell = narrow ? Room<uint16_t>::BYTES : Room<int32_t>::BYTES;
        const size_t lists =
            size_t(ceil_div(largest_dim, 4) * 4 + std::min(MOST_RUNS, ceil_div(most, WARP))) * sizeof(float);
        const size_t own = PLAN_THREADS * sizeof(double) + PLAN_WARPS * DIMENSIONS * sizeof(float) +
                           sizeof(PlanGroupsArgs) + 64; // the kernel's own shared memory
        const size_t room = size_t(most) * cell;
        const bool fits = lists + own + room <= MOST_SHARED;
        blocks = fits ? n_heads : int(std::clamp<size_t>(MOST_ROOM / room, 1, size_t(n_heads)));
        shared = lists + (fits ? room : 0);
        bytes = fits ? 0 : size_t(blocks) * room;
    }
};

size_t scratch_of_plans(int n_heads, int n_cells) {
    // Fewer cells a head are more rooms, of no more than MOST_ROOM together.
    return scratch_for<PlanGroupsArgs>(size_t(n_heads)) +
           scratch_for<char>(
               std::max(Rooms(n_heads, n_cells, 1 << 20).bytes,
                        std::min(MOST_ROOM, size_t(n_heads) * size_t(n_cells + 1) * Room<int32_t>::BYTES)));
}

void plan_heads(const PlanHeadsArgs & a) {
    const auto cells = [](const PlanGroupsArgs & h) { return h.keys.data; };
    on_each_gpu(a.heads, a.n_heads, cells, [](Launch & launch, const PlanGroupsArgs * heads, int n) {
        int most = 1, largest_dim = 1;
        for (int i = 0; i < n; i++) {
            most = std::max(most, heads[i].n);
            largest_dim = std::max(largest_dim, heads[i].values.dim);
        }
        const Rooms rooms(n, most, largest_dim);
        char * const memory = rooms.bytes > 0 ? launch.scratch<char>(rooms.bytes) : nullptr;
        const PlanGroupsArgs * const there = launch.uploaded(heads, size_t(n));
        if (!launch.fine()) {
            return;
        }
        const auto kernel = rooms.narrow ? plan<uint16_t> : plan<int32_t>;
        KVMERGE_LAUNCH(kernel, rooms.blocks, PLAN_THREADS, rooms.shared, launch.stream(), there, n, memory, rooms.most,
                       largest_dim);
    });
}

} // namespace cuda
} // namespace kvmerge
