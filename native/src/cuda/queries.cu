// Query moments on the GPU, of several layers at once.
#include "common.cuh"

#include <algorithm>

namespace kvmerge {
namespace cuda {

constexpr int SIDE = 16, TILE = 2 * SIDE; // a thread makes 2 by 2 of a tile
constexpr int MOST_LAYERS = 32;           // of a launch: parameters of a kernel have 4 KB

struct MomentsOfLayers {
    QueryMomentsArgs at[MOST_LAYERS];
};
static_assert(sizeof(MomentsOfLayers) <= 4000, "the parameters of a kernel");

// A thread block makes a TILE by TILE tile of a KV head's second moment, SIDE queries at a time. It is symmetric:
// blocks below the diagonal leave it to those above.
__global__ void __launch_bounds__(SIDE * SIDE) moments(MomentsOfLayers layers, int n_kv_heads) {
    __shared__ float qi[SIDE][TILE + 1], qj[SIDE][TILE + 1];
    const QueryMomentsArgs & a = layers.at[blockIdx.z / n_kv_heads];
    if (blockIdx.x < blockIdx.y) {
        return;
    }
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE, kv_head = blockIdx.z % n_kv_heads;
    const int i0 = blockIdx.y * TILE, j0 = blockIdx.x * TILE, rows = a.heads_per_kv * a.n_rows;
    float product[2][2] = {}, sum[2] = {};
    for (int r0 = 0; r0 < rows; r0 += SIDE) {
        const int r = min(r0 + y, rows - 1); // loading: a row of threads takes a query
        const float * const q = a.q + std::ptrdiff_t(kv_head * a.heads_per_kv + r / a.n_rows) * a.head_stride +
                                std::ptrdiff_t(r % a.n_rows) * a.row_stride;
        for (int k = 0; k < 2; k++) {
            const int d = x + SIDE * k;
            qi[y][d] = r0 + y < rows && i0 + d < a.dim ? q[i0 + d] : 0.0f;
            qj[y][d] = r0 + y < rows && j0 + d < a.dim ? q[j0 + d] : 0.0f;
        }
        __syncthreads();
        for (int k = 0; k < SIDE; k++) {
            for (int i = 0; i < 2; i++) {
                for (int j = 0; j < 2; j++) {
                    product[i][j] += qi[k][y + SIDE * i] * qj[k][x + SIDE * j];
                }
                sum[i] += qi[k][y + SIDE * i];
            }
        }
        __syncthreads();
    }
    float * const second = a.second + std::ptrdiff_t(kv_head) * a.dim * a.dim;
    for (int di = 0; di < 2; di++) {
        const int i = i0 + y + SIDE * di;
        for (int dj = 0; dj < 2; dj++) {
            const int j = j0 + x + SIDE * dj;
            if (i < a.dim && j < a.dim) {
                const float total = second[std::ptrdiff_t(i) * a.dim + j] * a.keep + product[di][dj];
                second[std::ptrdiff_t(i) * a.dim + j] = total;
                if (blockIdx.x > blockIdx.y) {
                    second[std::ptrdiff_t(j) * a.dim + i] = total;
                }
            }
        }
        if (i < a.dim && x == 0 && blockIdx.x == blockIdx.y) {
            float & total = a.sum[std::ptrdiff_t(kv_head) * a.dim + i];
            total = total * a.keep + sum[di];
        }
    }
}

void query_moments_all(const QueryMomentsArgs * args, int n) {
    in_groups(
        args, n, MOST_LAYERS, [](const QueryMomentsArgs & a) { return static_cast<const void *>(a.q); },
        [](const QueryMomentsArgs & a, const QueryMomentsArgs & b) {
            return a.n_kv_heads == b.n_kv_heads && a.dim == b.dim;
        },
        [](const QueryMomentsArgs * first, int count) {
            const Launch launch(first->q);
            if (launch.fine()) {
                MomentsOfLayers layers = {};
                std::copy_n(first, count, layers.at);
                const int tiles = ceil_div(first->dim, TILE);
                KVMERGE_LAUNCH(moments, dim3(tiles, tiles, count * first->n_kv_heads), SIDE * SIDE, 0, launch.stream(),
                               layers, first->n_kv_heads);
            }
        });
}

} // namespace cuda
} // namespace kvmerge
