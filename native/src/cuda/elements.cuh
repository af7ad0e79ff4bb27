// Keys and values of a head, read by a warp: four elements a lane, and several cells at once, since what takes time is
// that memory answers.
#pragma once

#include "common.cuh"

namespace kvmerge {
namespace cuda {

constexpr int DIMENSIONS = 4 * WARP; // that a warp has in registers: four a lane
constexpr int MANY = 4;              // cells that a warp asks for at once

// Elements d .. d + 3 of cells of any type, laid out in any way, zeros after the last. A function of its own keeps the
// kernel small: where it is called little else matters.
__device__ KVMERGE_NOINLINE void load_narrow(const CellView & v, int head, int4 cells, int n, int d, float * x) {
    const int cell[MANY] = {cells.x, cells.y, cells.z, cells.w};
    for (int k = 0; k < MANY; k++) {
        for (int i = 0; i < 4; i++) {
            x[4 * k + i] = k < n && d + i < v.dim ? load_cell(v, head, cell[k], d + i) : 0.0f;
        }
    }
}

__device__ inline float4 from_halves(uint64_t four, bool brain) {
    const auto one = [&](int i) {
        const uint16_t bits = uint16_t(four >> (16 * i));
        return brain ? __uint_as_float(uint32_t(bits) << 16) : __half2float(__ushort_as_half(bits));
    };
    return {one(0), one(1), one(2), one(3)};
}

// Keys or values of one head, read four elements at a time.
struct Elements {
    const CellView & view;
    int head;
    bool wide; // four elements are one load

    __device__ Elements(const CellView & v, int h) : view(v), head(h), wide(false) {
        const size_t four = v.type == CELL_F32 ? 16 : 8;
        wide = !v.transposed && v.type < CELL_Q8_0 && v.dim % 4 == 0 && size_t(v.cell_bytes) % four == 0 &&
               reinterpret_cast<size_t>(v.data) % four == 0;
    }

    // Elements d .. d + 3 of n <= MANY cells, zeros for the rest. All are asked for before the first one is used.
    __device__ void load(const int (&cell)[MANY], int n, int d, float4 (&x)[MANY]) const {
        if (!wide) {
            float all[4 * MANY];
            load_narrow(view, head, {cell[0], cell[1], cell[2], cell[3]}, n, d, all);
            for (int k = 0; k < MANY; k++) {
                x[k] = {all[4 * k], all[4 * k + 1], all[4 * k + 2], all[4 * k + 3]};
            }
        } else if (view.type == CELL_F32) {
            for (int k = 0; k < MANY; k++) {
                x[k] = k < n && d < view.dim ? *reinterpret_cast<const float4 *>(row(cell[k]) + 4 * d)
                                             : float4{0, 0, 0, 0};
            }
        } else {
            uint64_t bits[MANY];
            for (int k = 0; k < MANY; k++) {
                bits[k] = k < n && d < view.dim ? *reinterpret_cast<const uint64_t *>(row(cell[k]) + 2 * d) : 0;
            }
            for (int k = 0; k < MANY; k++) {
                x[k] = from_halves(bits[k], view.type == CELL_BF16);
            }
        }
    }

  private:
    // What is wide lies row by row.
    __device__ const char * row(int cell) const {
        return static_cast<const char *>(view.data) + cell * view.cell_bytes +
               std::ptrdiff_t(head) * view.dim * (view.type == CELL_F32 ? 4 : 2);
    }
};

__device__ inline void add(float4 & sum, float w, const float4 & x) {
    sum.x += w * x.x, sum.y += w * x.y, sum.z += w * x.z, sum.w += w * x.w;
}

__device__ inline float squared(const float4 & x) {
    return x.x * x.x + x.y * x.y + x.z * x.z + x.w * x.w;
}

} // namespace cuda
} // namespace kvmerge
