// The greedy choice of what to drop and what to merge, on the GPU: a thread block a KV head.
#include "heads.cuh"

#include <algorithm>
#include <cfloat>

namespace kvmerge {
namespace cuda {

constexpr int PLAN_THREADS = 128, PLAN_WARPS = PLAN_THREADS / WARP;
constexpr int DIMENSIONS = 4 * WARP;                 // that a warp adds up at once, in registers
constexpr int MOST_RUNS = 2048;                      // of prices, whose least ones are in shared memory
constexpr double GONE = INFINITY;                    // the price of a group that is no more
constexpr double DEAREST = DBL_MAX;                  // the highest price of a group that is there
constexpr size_t ROOM_BYTES = 2 * 8 + 3 * 4 + 5 * 4; // a cell, in Room
constexpr size_t MOST_ROOM = size_t(64) << 20;       // of all thread blocks that run at once

// A thread block's arrays, by cell. A group is named by its first member.
struct Room {
    double *price, *rate;
    float *from_mean, *keys_apart, *apart; // squared distances: of a value from the mean, from the next group's
    int *size, *next, *previous;           // groups, in position order; -1: none
    int *next_member, *last;               // the member after this one; a group's last
    __device__ Room(char * memory, int n) {
        price = reinterpret_cast<double *>(memory), rate = price + n;
        from_mean = reinterpret_cast<float *>(rate + n), keys_apart = from_mean + n, apart = keys_apart + n;
        size = reinterpret_cast<int *>(apart + n), next = size + n, previous = next + n;
        next_member = previous + n, last = next_member + n;
    }
};

// NaN and infinity come from cells that overflowed.
__device__ inline double bounded(double price) {
    return price < DEAREST ? price : DEAREST;
}

__device__ inline double drop_price(double rate, float from_mean) {
    return bounded(rate * sqrt(double(from_mean)));
}

// One that nobody attends to has nothing to give to a merged cell.
__device__ inline double merge_price(double ra, double rb, float from_mean_a, float from_mean_b, double keys_apart,
                                     double apart, double key_cost, int dim_k) {
    const double wa = ra / (ra + rb), wb = 1 - wa, sigma = sqrt(key_cost * keys_apart / dim_k);
    // |wa Va + wb Vb - mean|^2 by the parallelogram identity, from distances that are known already.
    const double merged = wa * from_mean_a + wb * from_mean_b - wa * wb * apart;
    const double price = (ra + rb) * wa * wb * sigma * (sqrt(apart) + sigma / 2 * sqrt(merged > 0 ? merged : 0.0));
    return ra == 0 || rb == 0 ? DEAREST : bounded(price);
}

// One head's planning. Methods that start with all_ are for all threads of the block, others for a warp or a thread.
struct HeadPlan {
    const PlanGroupsArgs & a;
    Room r;
    float * mean;   // [dim of values], shared
    double * least; // [n_runs], shared: of each run of prices
    int run, n_runs;

    __device__ int count() const { return a.end - a.first; }

    // The mean of the values, weighted by the rates. `part`: shared, [PLAN_WARPS][DIMENSIONS].
    __device__ void all_mean(double total, float * part) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, dim = a.values.dim;
        const auto share = [&](int i) { return float(total > 0 ? a.rate[i] / total : 1.0 / a.n); };
        if (a.values.transposed) { // cells lie side by side: a warp takes a dimension
            for (int d = warp; d < dim; d += PLAN_WARPS) {
                float sum = 0;
                for (int i = lane; i < a.n; i += WARP) {
                    sum += share(i) * load_cell(a.values, a.head, a.cells[i], d);
                }
                sum = warp_sum(sum);
                if (lane == 0) {
                    mean[d] = sum;
                }
            }
            __syncthreads();
            return;
        }
        for (int d0 = 0; d0 < dim; d0 += DIMENSIONS) {
            float sum[DIMENSIONS / WARP] = {};
            for (int i = warp; i < a.n; i += PLAN_WARPS) {
                const float w = share(i);
                for (int k = 0; k < DIMENSIONS / WARP; k++) {
                    const int d = d0 + k * WARP + lane;
                    sum[k] += d < dim ? w * load_cell(a.values, a.head, a.cells[i], d) : 0.0f;
                }
            }
            for (int k = 0; k < DIMENSIONS / WARP; k++) {
                part[warp * DIMENSIONS + k * WARP + lane] = sum[k];
            }
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

    // Whether an earlier call left the distance of cell i from the next one.
    __device__ bool is_known(int i) const {
        return a.known && i + 1 < a.end && a.known[a.cells[i]].next == a.cells[i + 1];
    }

    // Distances of single cells, each read from memory once or twice: from the next cell's, and of values from the
    // mean.
    template <bool VALUES>
    __device__ void all_distances(const CellView & view, float * apart) {
        const int step = view.transposed ? 1 : WARP; // side by side: a thread takes a cell; else a warp does
        const int lane = threadIdx.x % step;
        for (int i = a.first + int(threadIdx.x) / step; i < a.end; i += PLAN_THREADS / step) {
            const bool next = i + 1 < a.end && !is_known(i);
            float from = 0, between = 0;
            for (int d = lane; (VALUES || next) && d < view.dim; d += step) {
                const float x = load_cell(view, a.head, a.cells[i], d);
                if (VALUES) {
                    from += (x - mean[d]) * (x - mean[d]);
                }
                if (next) {
                    const float gap = x - load_cell(view, a.head, a.cells[i + 1], d);
                    between += gap * gap;
                }
            }
            if (step == WARP) {
                from = warp_sum(from);
                between = warp_sum(between);
            }
            if (lane == 0) {
                if (VALUES) {
                    r.from_mean[i] = from;
                }
                apart[i] = next           ? between
                           : !is_known(i) ? 0.0f
                           : VALUES       ? a.known[a.cells[i]].values
                                          : a.known[a.cells[i]].keys;
            }
        }
    }

    __device__ void all_price() {
        for (int i = a.first + int(threadIdx.x); i < a.end; i += PLAN_THREADS) {
            const double drop = drop_price(r.rate[i], r.from_mean[i]);
            r.price[i] = i + 1 < a.end && a.largest_group >= 2 ? min(drop, price_with(i, i + 1)) : drop;
        }
        __syncthreads();
        for (int k = threadIdx.x / WARP; k < n_runs; k += PLAN_WARPS) {
            refresh(k);
        }
    }

    __device__ double price_with(int i, int next) const {
        return merge_price(r.rate[i], r.rate[next], r.from_mean[i], r.from_mean[next], r.keys_apart[i], r.apart[i],
                           a.key_cost, a.keys.dim);
    }

    // ---- by one warp ----

    // Finds a run's least price anew.
    __device__ void refresh(int k) {
        double best = GONE;
        for (int i = a.first + k * run + int(threadIdx.x % WARP); i < min(a.first + (k + 1) * run, a.end); i += WARP) {
            best = min(best, r.price[i]);
        }
        for (int o = WARP / 2; o > 0; o /= 2) {
            best = min(best, __shfl_xor_sync(ALL_LANES, best, o));
        }
        if (threadIdx.x % WARP == 0) {
            least[k] = best;
        }
        __syncwarp();
    }

    // The cheapest group, the first of equals.
    __device__ int cheapest() const {
        const int lane = threadIdx.x % WARP;
        double best = GONE;
        int at = n_runs;
        for (int k = lane; k < n_runs; k += WARP) {
            if (least[k] < best) {
                best = least[k], at = k;
            }
        }
        for (int o = WARP / 2; o > 0; o /= 2) {
            const double price = __shfl_xor_sync(ALL_LANES, best, o);
            const int where = __shfl_xor_sync(ALL_LANES, at, o);
            if (price < best || (price == best && where < at)) {
                best = price, at = where;
            }
        }
        int found = a.end;
        for (int i = a.first + at * run + lane; i < min(a.first + (at + 1) * run, a.end); i += WARP) {
            found = r.price[i] == best ? min(found, i) : found;
        }
        for (int o = WARP / 2; o > 0; o /= 2) {
            found = min(found, __shfl_xor_sync(ALL_LANES, found, o));
        }
        return found;
    }

    // Element d of a group's mean: its members', weighted by their rates.
    __device__ float element(const CellView & view, int g, int d) const {
        if (r.size[g] == 1) {
            return load_cell(view, a.head, a.cells[g], d);
        }
        float sum = 0;
        for (int m = g; m >= 0; m = r.next_member[m]) {
            sum += float(a.rate[m] / r.rate[g]) * load_cell(view, a.head, a.cells[m], d);
        }
        return sum;
    }

    __device__ float between(const CellView & view, int g, int other) const {
        float sum = 0;
        for (int d = threadIdx.x % WARP; d < view.dim; d += WARP) {
            const float gap = element(view, g, d) - element(view, other, d);
            sum += gap * gap;
        }
        return warp_sum(sum);
    }

    // The price of a group, after it or the one next to it has changed.
    __device__ void reprice(int g) {
        if (g < 0) {
            return;
        }
        const int next = r.next[g];
        double price = drop_price(r.rate[g], r.from_mean[g]);
        if (next >= 0) {
            const float keys = between(a.keys, g, next), values = between(a.values, g, next);
            if (threadIdx.x % WARP == 0) {
                r.keys_apart[g] = keys;
                r.apart[g] = values;
            }
            __syncwarp();
            if (r.size[g] + r.size[next] <= a.largest_group) {
                price = min(price, price_with(g, next));
            }
        }
        if (threadIdx.x % WARP == 0) {
            r.price[g] = price;
        }
        __syncwarp();
        refresh((g - a.first) / run);
    }

    __device__ void unlink(int g) {
        if (r.previous[g] >= 0) {
            r.next[r.previous[g]] = r.next[g];
        }
        if (r.next[g] >= 0) {
            r.previous[r.next[g]] = r.previous[g];
        }
    }

    __device__ void absorb(int g, int other) {
        if (threadIdx.x % WARP == 0) {
            for (int m = other; m >= 0; m = r.next_member[m]) {
                a.group[m] = g;
            }
            r.next_member[r.last[g]] = other;
            r.last[g] = r.last[other];
            r.size[g] += r.size[other];
            r.rate[g] += r.rate[other];
            unlink(other);
            r.price[other] = GONE;
        }
        __syncwarp();
        float sum = 0;
        for (int d = threadIdx.x % WARP; d < a.values.dim; d += WARP) {
            const float gap = element(a.values, g, d) - mean[d];
            sum += gap * gap;
        }
        sum = warp_sum(sum);
        if (threadIdx.x % WARP == 0) {
            r.from_mean[g] = sum;
        }
        __syncwarp();
        refresh((other - a.first) / run);
        reprice(g);
    }

    __device__ void drop(int g) {
        if (threadIdx.x % WARP == 0) {
            for (int m = g; m >= 0; m = r.next_member[m]) {
                a.group[m] = -1;
            }
            unlink(g);
            r.price[g] = GONE;
        }
        __syncwarp();
        refresh((g - a.first) / run);
    }

    __device__ void choose() {
        double cost = 0;
        for (int done = 0; done < a.operations; done++) {
            const int g = cheapest(), previous = r.previous[g], next = r.next[g];
            const double price = r.price[g];
            const bool merges = price < drop_price(r.rate[g], r.from_mean[g]);
            cost += price;
            __syncwarp(); // all lanes have read what is about to change
            if (merges) {
                absorb(g, next);
            } else {
                drop(g);
            }
            reprice(previous);
        }
        if (threadIdx.x % WARP == 0) {
            *a.cost = cost;
        }
    }
};

__global__ void __launch_bounds__(PLAN_THREADS)
    plan(const PlanGroupsArgs * heads, int n_heads, char * rooms, int most, int largest_dim) {
    __shared__ double totals[PLAN_THREADS];
    __shared__ float part[PLAN_WARPS * DIMENSIONS];
    KVMERGE_DYNAMIC_SHARED(double, least);
    for (int index = blockIdx.x; index < n_heads; index += gridDim.x) {
        const PlanGroupsArgs & a = heads[index];
        const int run = WARP * max(1, (a.end - a.first + WARP * MOST_RUNS - 1) / (WARP * MOST_RUNS));
        HeadPlan p = {a,
                      Room(rooms + size_t(blockIdx.x) * most * ROOM_BYTES, most),
                      reinterpret_cast<float *>(least),
                      least + (largest_dim + 1) / 2,
                      run,
                      (a.end - a.first + run - 1) / run};
        double sum = 0;
        for (int i = threadIdx.x; i < a.n; i += PLAN_THREADS) {
            sum += a.rate[i];
            a.group[i] = i;
            p.r.rate[i] = a.rate[i];
            p.r.price[i] = GONE;
            p.r.size[i] = 1;
            p.r.next[i] = i >= a.first && i + 1 < a.end ? i + 1 : -1;
            p.r.previous[i] = i > a.first && i < a.end ? i - 1 : -1;
            p.r.next_member[i] = -1;
            p.r.last[i] = i;
        }
        totals[threadIdx.x] = sum;
        __syncthreads();
        double total = 0;
        for (int t = 0; t < PLAN_THREADS; t++) {
            total += totals[t];
        }
        p.all_mean(total, part);
        p.all_distances<true>(a.values, p.r.apart);
        p.all_distances<false>(a.keys, p.r.keys_apart);
        __syncthreads();
        p.all_price();
        __syncthreads();
        if (threadIdx.x < WARP) {
            p.choose();
        }
        __syncthreads();
        for (int i = a.first + int(threadIdx.x); a.known && i < a.end; i += PLAN_THREADS) {
            // The next call gets the distances of cells that stay as they are and next to each other.
            const int next = p.r.next[i];
            const bool stays = p.r.price[i] != GONE && p.r.size[i] == 1 && next >= 0 && p.r.size[next] == 1;
            a.known[a.cells[i]] = {stays ? a.cells[next] : -1, p.r.keys_apart[i], p.r.apart[i]};
        }
        __syncthreads(); // before the next head takes the same room
    }
}

// The rooms of the thread blocks that run at once, of heads with up to `most` cells.
struct Rooms {
    int most, blocks;
    Rooms(int n_heads, int n_cells)
        : most(n_cells + n_cells % 2), // doubles of the next room stay aligned
          blocks(int(std::clamp<size_t>(MOST_ROOM / (size_t(most) * ROOM_BYTES), 1, size_t(n_heads)))) {}
    size_t bytes() const { return size_t(blocks) * size_t(most) * ROOM_BYTES; }
};

size_t scratch_of_plans(int n_heads, int n_cells) {
    // Fewer cells a head are more rooms, of no more than MOST_ROOM together.
    return scratch_for<PlanGroupsArgs>(size_t(n_heads)) +
           scratch_for<char>(std::max(Rooms(n_heads, n_cells).bytes(),
                                      std::min(MOST_ROOM, size_t(n_heads) * size_t(n_cells + 1) * ROOM_BYTES)));
}

void plan_heads(const PlanHeadsArgs & a) {
    const auto cells = [](const PlanGroupsArgs & h) { return h.keys.data; };
    on_each_gpu(a.heads, a.n_heads, cells, [](Launch & launch, const PlanGroupsArgs * heads, int n) {
        int most = 1, largest_dim = 1;
        for (int i = 0; i < n; i++) {
            most = std::max(most, heads[i].n);
            largest_dim = std::max(largest_dim, heads[i].values.dim);
        }
        const Rooms rooms(n, most);
        char * const memory = launch.scratch<char>(rooms.bytes());
        const PlanGroupsArgs * const there = launch.uploaded(heads, size_t(n));
        if (!launch.fine()) {
            return;
        }
        const size_t shared =
            (size_t(largest_dim + 1) / 2 + size_t(std::min(MOST_RUNS, ceil_div(rooms.most, WARP)))) * sizeof(double);
        KVMERGE_LAUNCH(plan, rooms.blocks, PLAN_THREADS, shared, launch.stream(), there, n, memory, rooms.most,
                       largest_dim);
    });
}

} // namespace cuda
} // namespace kvmerge
