// The table of the cells on the GPU: adding blocks, checking plans and making lists of them, moving to what they say.
#include "common.cuh"

#include <algorithm>
#include <climits>

namespace kvmerge {
namespace cuda {

constexpr int TABLE_THREADS = 128, TABLE_WARPS = TABLE_THREADS / WARP, MOST_TABLE_TILES = 1024;
constexpr double LEAST_LENGTH = 1e-3;

// Exclusive sums over a thread block; `total` is the sum of all. Every thread calls it.
__device__ inline int sums_before(int value, int * shared, int & total) {
    const int t = threadIdx.x;
    shared[t] = value;
    __syncthreads();
    for (int step = 1; step < TABLE_THREADS; step *= 2) {
        const int before = t >= step ? shared[t - step] : 0;
        __syncthreads();
        shared[t] += before;
        __syncthreads();
    }
    const int sum = shared[t] - value;
    total = shared[TABLE_THREADS - 1];
    __syncthreads();
    return sum;
}

static dim3 tiles_of(int n_heads, int n) {
    return dim3(n_heads, std::min(MOST_TABLE_TILES, ceil_div(std::max(n, 1), TABLE_THREADS)));
}

__global__ void __launch_bounds__(TABLE_THREADS) add(AddBlockArgs a) {
    const int h = blockIdx.x;
    const size_t row = size_t(h) * a.rows.n_cells;
    for (int i = blockIdx.y * TABLE_THREADS + threadIdx.x; i < a.used + a.n; i += gridDim.y * TABLE_THREADS) {
        const size_t at = row + i;
        const int t = i - a.used;
        if (t < 0) {
            a.rows.exposure[at] = float(a.rows.exposure[at] * a.keep + a.n);
        } else {
            a.rows.cell[at] = a.token_cell[t];
            a.rows.position[at] = a.first_position + t;
            a.rows.frame[at] = a.first_frame + t;
            a.rows.count[at] = 1;
            a.rows.mass[at] = 0;
            a.rows.exposure[at] = float(a.n - t);
            if (a.rows.entropy) {
                float sum = 0;
                for (int q = 0; a.entropy && q < a.heads_per_kv; q++) {
                    sum += a.entropy[h][q * a.entropy_stride + t];
                }
                a.rows.entropy[at] = sum / float(a.heads_per_kv);
            }
            if (a.rows.prior) {
                const float * const w = a.calibration + size_t(h) * a.calibration_stride;
                const size_t of = size_t(h) * a.n + t;
                a.rows.prior[at] = float(double(w[0]) + double(w[5]) * log(double(a.length[of]) + LEAST_LENGTH) +
                                         double(a.product[of]));
            }
        }
        if (a.mass) {
            const float mass = a.mass[h][a.rows.cell[at]];
            a.rows.mass[at] = float(a.rows.mass[at] * a.keep + mass);
            if (!(fabsf(mass) < INFINITY)) {
                a.flaw[h] = 1;
            }
        }
    }
}

void add_block(const AddBlockArgs & a) {
    const Launch launch(a.rows.cell);
    if (launch.fine()) {
        KVMERGE_LAUNCH(add, tiles_of(a.rows.n_heads, a.used + a.n), TABLE_THREADS, 0, launch.stream(), a);
    }
}

__device__ inline double received(const TableRows & rows, size_t at) {
    return double(rows.mass[at] / rows.exposure[at]);
}

__global__ void __launch_bounds__(TABLE_THREADS) rate(RateCellsArgs a) {
    const size_t row = size_t(blockIdx.x) * a.rows.n_cells;
    for (int i = blockIdx.y * TABLE_THREADS + threadIdx.x; i < a.used - a.pinned; i += gridDim.y * TABLE_THREADS) {
        a.rate[row + i] = received(a.rows, row + a.pinned + i);
    }
}

void rate_cells(const RateCellsArgs & a) {
    const Launch launch(a.rows.cell);
    if (launch.fine()) {
        KVMERGE_LAUNCH(rate, tiles_of(a.rows.n_heads, a.used - a.pinned), TABLE_THREADS, 0, launch.stream(), a);
    }
}

// A thread takes a group, by its first member. The others follow it, with dropped cells among them and nothing else.
__global__ void __launch_bounds__(TABLE_THREADS) weigh(WeighGroupsArgs a) {
    const size_t row = size_t(blockIdx.x) * a.rows.n_cells;
    const int32_t * const group = a.group + row;
    int32_t * const target = a.target + row;
    float * const weight = a.weight + row;
    const int n = a.used - a.pinned;
    const auto rate_of = [&](int i) { return received(a.rows, row + a.pinned + i); };
    for (int i = blockIdx.y * TABLE_THREADS + threadIdx.x; i < n; i += gridDim.y * TABLE_THREADS) {
        if (group[i] == -1) {
            target[i] = -1;
            weight[i] = 1;
        }
        double total = 0;
        int size = 0, pivot = i;
        for (int j = i; group[i] == i && j < n && (group[j] == i || group[j] == -1); j++) {
            if (group[j] == i) {
                total += rate_of(j);
                size++;
                pivot = rate_of(j) > rate_of(pivot) ? j : pivot;
            }
        }
        for (int j = i, left = size; left > 0; j++) {
            if (group[j] == i) {
                target[j] = pivot;
                weight[j] = size == 1 ? 1.0f : float(total > 0 ? rate_of(j) / total : 1.0 / size);
                left--;
            }
        }
    }
}

void weigh_groups(const WeighGroupsArgs & a) {
    const Launch launch(a.rows.cell);
    if (launch.fine()) {
        KVMERGE_LAUNCH(weigh, tiles_of(a.rows.n_heads, a.used - a.pinned), TABLE_THREADS, 0, launch.stream(), a);
    }
}

// ---- staging --------------------------------------------------------------------------------------------------------

enum Flaw { FINE, BAD_TARGET, BAD_WEIGHT, NEWEST_GOES, WRONG_NUMBER, NO_CELL, NO_ROOM, BAD_SUM };

constexpr size_t STAGE_ROOM_BYTES = 6 * 4; // a cell
constexpr size_t MOST_STAGE_ROOM = size_t(32) << 20;

// One head's staging by a thread block.
struct HeadStage {
    const StageHeadsArgs & a;
    int h;
    int *rank, *members, *low, *high; // by row, of pivots; other members' rows lie in [low, high]
    int *free, *taken;                // cells that stay and are nobody's yet; by cell: whether a pivot is there
    int *shared, *flaw;

    __device__ size_t at(int i) const { return size_t(h) * a.rows.n_cells + i; }
    __device__ int target_of(int i) const {
        const int target = i < a.pinned ? i - a.pinned : a.target[at(i - a.pinned)];
        return target == -1 && i >= a.pinned ? -1 : target + a.pinned;
    }
    __device__ float weight_of(int i) const { return i < a.pinned ? 1.0f : a.weight[at(i - a.pinned)]; }
    __device__ float value_weight_of(int i) const {
        return i < a.pinned ? 1.0f : a.value_weight ? a.value_weight[at(i - a.pinned)] : weight_of(i);
    }
    __device__ bool is_pivot(int i) const { return i < a.used && target_of(i) == i; }
    __device__ int new_frame(int i) const { return max(rank[i], a.rows.frame[at(i)] - a.back); }
    __device__ bool is_rewritten(int i) const {
        return members[i] > 1 || a.dest[at(i)] != a.rows.cell[at(i)] ||
               (a.back > 0 && new_frame(i) != a.rows.frame[at(i)]);
    }

    __device__ void all_check() {
        for (int c = threadIdx.x; c < a.rows.n_cells; c += TABLE_THREADS) {
            taken[c] = 0;
        }
        for (int i = threadIdx.x; i < a.used; i += TABLE_THREADS) {
            members[i] = 0, low[i] = INT_MAX, high[i] = -1;
            a.dest[at(i)] = -1;
        }
        if (threadIdx.x == 0) {
            *flaw = is_pivot(a.used - 1) && fabsf(weight_of(a.used - 1) - 1) <= 1e-3f ? FINE : NEWEST_GOES;
        }
        __syncthreads();
        for (int i = threadIdx.x; i < a.used; i += TABLE_THREADS) {
            const int p = target_of(i);
            if (p == -1) {
                continue;
            }
            if (p < a.pinned - (i < a.pinned ? a.pinned : 0) || p >= a.used || target_of(p) != p) {
                *flaw = BAD_TARGET;
                continue;
            }
            if (!(weight_of(i) >= 0) || weight_of(i) > 1.001f || !(fabsf(value_weight_of(i)) < INFINITY)) {
                *flaw = BAD_WEIGHT;
            }
            atomicAdd(&members[p], 1);
            if (p == i) {
                taken[a.rows.cell[at(i)]] = 1;
            } else {
                atomicMin(&low[p], i);
                atomicMax(&high[p], i);
            }
        }
        __syncthreads();
    }

    // Pivots that already lie in a cell that stays, stay in it; the others take the free ones in order.
    __device__ void all_place() {
        int kept = 0, moved = 0, n_free = 0, total;
        for (int i0 = 0; i0 < a.used; i0 += TABLE_THREADS) {
            const int i = i0 + threadIdx.x;
            const bool pivot = is_pivot(i), moves = pivot && !a.stays[a.rows.cell[at(i)]];
            const int before = sums_before(pivot, shared, total);
            if (pivot) {
                rank[i] = kept + before;
            }
            kept += total;
            const int moved_before = sums_before(moves, shared, total);
            if (pivot) {
                a.dest[at(i)] = moves ? -2 - (moved + moved_before) : a.rows.cell[at(i)];
            }
            moved += total;
        }
        for (int c0 = 0; c0 < a.rows.n_cells; c0 += TABLE_THREADS) {
            const int c = c0 + threadIdx.x;
            const bool is_free = c < a.rows.n_cells && a.stays[c] && !taken[c];
            const int before = sums_before(is_free, shared, total);
            if (is_free) {
                free[n_free + before] = c;
            }
            n_free += total;
        }
        if (threadIdx.x == 0 && (kept != a.budget || moved > n_free)) {
            *flaw = kept != a.budget ? WRONG_NUMBER : NO_CELL;
        }
        __syncthreads();
        for (int i = threadIdx.x; *flaw == FINE && i < a.used; i += TABLE_THREADS) {
            if (const int k = -2 - a.dest[at(i)]; k >= 0) {
                a.dest[at(i)] = free[k];
            }
        }
        __syncthreads();
    }

    // Where the lists of the groups start, which are as many as it gives.
    __device__ int all_list() {
        int groups = 0, all = 0, n_groups, total;
        int32_t * const start = a.start + size_t(h) * (a.room + 1);
        for (int i0 = 0; i0 < a.used; i0 += TABLE_THREADS) {
            const int i = i0 + threadIdx.x;
            const int size = is_pivot(i) && is_rewritten(i) ? members[i] : 0;
            const int g = groups + sums_before(size > 0, shared, n_groups),
                      first = all + sums_before(size, shared, total);
            if (size > 0 && first + size <= a.room) {
                start[g] = first;
                a.to[size_t(h) * a.room + g] = a.dest[at(i)];
                a.row[size_t(h) * a.room + first] = i;
            }
            groups += n_groups;
            all += total;
        }
        if (threadIdx.x == 0) {
            if (all > a.room) {
                *flaw = NO_ROOM;
            } else {
                start[groups] = all;
            }
        }
        __syncthreads();
        return groups;
    }

    // Fills in a group's members, its pivot first and the others in position order. A warp does it.
    __device__ void fill(int g, int * merges) {
        const int lane = threadIdx.x % WARP;
        const size_t list = size_t(h) * a.room;
        const int32_t * const start = a.start + size_t(h) * (a.room + 1);
        const int first = start[g], end = start[g + 1], p = a.row[list + first];
        int next = first + 1;
        for (int j0 = low[p]; j0 <= high[p]; j0 += WARP) {
            const bool mine = j0 + lane <= high[p] && j0 + lane != p && target_of(j0 + lane) == p;
            const unsigned all = __ballot_sync(ALL_LANES, mine);
            if (mine) {
                a.row[list + next + __popc(all & ((1u << lane) - 1))] = j0 + lane;
            }
            next += __popc(all);
        }
        __syncwarp();
        const bool alone = end - first == 1;
        float sum = 0, entropy = 0;
        for (int m = first + lane; m < end; m += WARP) {
            const int i = a.row[list + m];
            const float w = weight_of(i);
            sum += w;
            entropy -= w > 0 ? w * logf(w) : 0.0f;
            a.member[list + m] = a.rows.cell[at(i)];
            a.share[list + m] = alone ? 1.0f : w;
            a.value_share[list + m] = alone ? 1.0f : value_weight_of(i);
            a.delta[list + m] = (a.pivot_frame ? a.rows.frame[at(p)] - a.rows.frame[at(i)] : 0) +
                                (a.back > 0 ? new_frame(p) - a.rows.frame[at(p)] : 0);
        }
        sum = warp_sum(sum);
        entropy = warp_sum(entropy);
        if (lane == 0) {
            a.bias[list + g] = alone ? 0.0f : entropy * a.inverse_scale[h];
            if (!alone) {
                *merges = 1;
            }
            if (!(fabsf(sum - 1) <= 1e-3f)) {
                *flaw = BAD_SUM;
            }
        }
    }
};

__global__ void __launch_bounds__(TABLE_THREADS) stage(StageHeadsArgs a, int * rooms) {
    __shared__ int shared[TABLE_THREADS];
    __shared__ int flaw, merges;
    const size_t n = size_t(a.rows.n_cells);
    int * const room = rooms + size_t(blockIdx.x) * 6 * n;
    for (int h = blockIdx.x; h < a.rows.n_heads; h += gridDim.x) {
        HeadStage s = {a, h, room, room + n, room + 2 * n, room + 3 * n, room + 4 * n, room + 5 * n, shared, &flaw};
        int groups = 0;
        s.all_check();
        if (flaw == FINE) {
            s.all_place();
        }
        if (flaw == FINE) {
            groups = s.all_list();
        }
        if (threadIdx.x == 0) {
            merges = 0;
        }
        __syncthreads();
        const int n_lists = flaw == FINE ? groups : 0;
        __syncthreads(); // all have read what filling may change
        for (int g = threadIdx.x / WARP; g < n_lists; g += TABLE_WARPS) {
            s.fill(g, &merges);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            a.verdict[h] = {a.not_finite[h] ? FLAW_ATTENTION : flaw, groups, merges};
        }
        __syncthreads();
    }
}

// How many heads are staged at once.
static int stage_blocks(int n_heads, int n_cells) {
    return int(std::clamp<size_t>(MOST_STAGE_ROOM / (size_t(n_cells) * STAGE_ROOM_BYTES), 1, size_t(n_heads)));
}

size_t scratch_of_stages(int n_heads, int n_cells) {
    return scratch_for<char>(size_t(stage_blocks(n_heads, n_cells)) * size_t(n_cells) * STAGE_ROOM_BYTES);
}

void stage_heads(const StageHeadsArgs & a) {
    Launch launch(a.rows.cell);
    const int blocks = stage_blocks(a.rows.n_heads, a.rows.n_cells);
    int * const rooms =
        reinterpret_cast<int *>(launch.scratch<char>(size_t(blocks) * size_t(a.rows.n_cells) * STAGE_ROOM_BYTES));
    if (rooms) {
        KVMERGE_LAUNCH(stage, blocks, TABLE_THREADS, 0, launch.stream(), a, rooms);
    }
}

// ---- committing -----------------------------------------------------------------------------------------------------

// In place: a row that stays goes to where an earlier one was, or stays where it is.
__global__ void __launch_bounds__(TABLE_THREADS) commit(CommitHeadsArgs a) {
    __shared__ int shared[TABLE_THREADS];
    const int h = blockIdx.x;
    const TableRows & c = a.rows;
    const size_t row = size_t(h) * c.n_cells, list = size_t(h) * a.room;
    const int32_t * const start = a.start + size_t(h) * (a.room + 1);
    for (int g = threadIdx.x; g < a.verdict[h].n_groups; g += TABLE_THREADS) { // what members leave to their pivots
        const int first = start[g], end = start[g + 1];
        const size_t p = row + a.row[list + first];
        if (end - first == 1) {
            continue;
        }
        float mass = c.mass[p];
        float entropy = c.entropy ? a.share[list + first] * c.entropy[p] : 0.0f;
        float prior = c.prior ? a.share[list + first] * c.prior[p] : 0.0f;
        int count = c.count[p];
        for (int m = first + 1; m < end; m++) {
            const size_t i = row + a.row[list + m];
            mass += c.mass[i];
            entropy += c.entropy ? a.share[list + m] * c.entropy[i] : 0.0f;
            prior += c.prior ? a.share[list + m] * c.prior[i] : 0.0f;
            count += c.count[i];
        }
        c.mass[p] = mass;
        c.count[p] = count;
        if (c.entropy) {
            c.entropy[p] = entropy;
        }
        if (c.prior) {
            c.prior[p] = prior;
        }
    }
    __syncthreads();
    int kept = 0, total;
    for (int i0 = 0; i0 < a.used; i0 += TABLE_THREADS) {
        const int i = i0 + int(threadIdx.x);
        const size_t from = row + i;
        const bool stays = i < a.used && a.dest[from] >= 0;
        int32_t dest = 0, position = 0, frame = 0, count = 0;
        float mass = 0, exposure = 0, entropy = 0, prior = 0;
        if (stays) {
            dest = a.dest[from], position = c.position[from], frame = c.frame[from], count = c.count[from];
            mass = c.mass[from], exposure = c.exposure[from];
            entropy = c.entropy ? c.entropy[from] : 0.0f;
            prior = c.prior ? c.prior[from] : 0.0f;
        }
        const int rank = kept + sums_before(stays, shared, total); // all have read when the first writes
        if (stays) {
            const size_t to = row + rank;
            c.cell[to] = dest, c.position[to] = position, c.frame[to] = max(rank, frame - a.back), c.count[to] = count;
            c.mass[to] = mass, c.exposure[to] = exposure;
            if (c.entropy) {
                c.entropy[to] = entropy;
            }
            if (c.prior) {
                c.prior[to] = prior;
            }
        }
        kept += total;
    }
}

void commit_heads(const CommitHeadsArgs & a) {
    const Launch launch(a.rows.cell);
    if (launch.fine()) {
        KVMERGE_LAUNCH(commit, a.rows.n_heads, TABLE_THREADS, 0, launch.stream(), a);
    }
}

} // namespace cuda
} // namespace kvmerge
