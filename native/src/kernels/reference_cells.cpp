// Cells as ggml lays them out, read in double precision. Quantising is in single precision, as ggml's
// quantize_row_<type>_ref, since its rounding is part of the format: compiled without fused multiply-adds.
#include "reference.hpp"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>

namespace kvmerge {
namespace reference {

// Half precision, IEEE 754: sign, 5 bits of exponent, 10 of mantissa.
static float half_to_float(uint16_t half) {
    const int sign = half >> 15, exponent = (half >> 10) & 31, mantissa = half & 1023;
    double x;
    if (exponent == 31) {
        x = mantissa ? std::numeric_limits<double>::quiet_NaN() : std::numeric_limits<double>::infinity();
    } else if (exponent == 0) {
        x = std::ldexp(double(mantissa), -24);
    } else {
        x = std::ldexp(double(1024 + mantissa), exponent - 25);
    }
    return float(sign ? -x : x);
}

// Rounds to nearest even. Overflow gives infinity.
static uint16_t float_to_half(float value) {
    const double x = std::fabs(double(value));
    uint16_t bits;
    if (std::isnan(x)) {
        bits = 0x7e00;
    } else if (x >= 65520) {
        bits = 0x7c00;
    } else if (x < std::ldexp(1.0, -14)) {
        bits = uint16_t(std::nearbyint(std::ldexp(x, 24))); // carries into the smallest normal by itself
    } else {
        const int e = std::ilogb(x);
        bits = uint16_t((e + 15) * 1024 + int(std::nearbyint(std::ldexp(x, 10 - e))) - 1024);
    }
    return uint16_t(bits | (std::signbit(value) ? 0x8000 : 0));
}

// Where element j of a cell of a head lies, or the quantisation block that it is in.
static char * address(const CellView & v, int head, int32_t cell, int j) {
    const std::ptrdiff_t index = std::ptrdiff_t(head) * v.dim + j; // among the elements of the row
    char * const data = static_cast<char *>(v.data);
    return v.transposed ? data + (index * v.n_cells + cell) * std::ptrdiff_t(bytes_of(v.type, 1))
           : is_quantised(v.type)
               ? data + cell * v.cell_bytes + index / QUANTS * std::ptrdiff_t(bytes_of(v.type, QUANTS))
               : data + cell * v.cell_bytes + index * std::ptrdiff_t(bytes_of(v.type, 1));
}

static float half_at(const char * at) {
    uint16_t half;
    std::memcpy(&half, at, 2);
    return half_to_float(half);
}

static void put_half(char * at, float x) {
    const uint16_t half = float_to_half(x);
    std::memcpy(at, &half, 2);
}

// What of a quantised type's layout its name says: bits a code, and whether the block's least element is stored.
static int bits_of(int32_t type) {
    return type == CELL_Q8_0 ? 8 : type == CELL_Q5_0 || type == CELL_Q5_1 ? 5 : 4;
}

static bool has_least(int32_t type) {
    return type == CELL_Q4_1 || type == CELL_Q5_1;
}

// The code of element i of a block: low four bits in byte i % 16 of the last 16, the fifth in bit i of the four bytes
// before them.
static int code_at(int32_t type, const char * block, int i) {
    const uint8_t * const at = reinterpret_cast<const uint8_t *>(block) + (has_least(type) ? 4 : 2);
    if (bits_of(type) == 4) {
        return at[i % 16] >> (i / 16 * 4) & 15;
    }
    return (at[4 + i % 16] >> (i / 16 * 4) & 15) + 16 * (at[i / 8] >> (i % 8) & 1);
}

static void put_code(int32_t type, char * block, int i, int code) {
    uint8_t * at = reinterpret_cast<uint8_t *>(block) + (has_least(type) ? 4 : 2);
    if (bits_of(type) == 5) {
        at[i / 8] = uint8_t((at[i / 8] & ~(1 << (i % 8))) | (code >> 4) << (i % 8));
        at += 4;
    }
    at[i % 16] = uint8_t((at[i % 16] & (i < 16 ? 0xf0 : 0x0f)) | (code & 15) << (i / 16 * 4));
}

double element(const CellView & v, int head, int32_t cell, int j) {
    const char * const at = address(v, head, cell, j);
    float x;
    switch (v.type) {
    case CELL_F32:
        std::memcpy(&x, at, 4);
        return x;
    case CELL_F16:
        return half_at(at);
    case CELL_BF16: {
        uint16_t half;
        std::memcpy(&half, at, 2);
        const uint32_t bits = uint32_t(half) << 16;
        std::memcpy(&x, &bits, 4);
        return x;
    }
    case CELL_Q8_0:
        return half_at(at) * double(reinterpret_cast<const int8_t *>(at)[2 + j % QUANTS]);
    case CELL_IQ4_NL:
        return half_at(at) * double(IQ4_NL_VALUES[code_at(v.type, at, j % QUANTS)]);
    default: {
        const int code = code_at(v.type, at, j % QUANTS);
        return has_least(v.type) ? half_at(at) * double(code) + half_at(at + 2)
                                 : half_at(at) * double(code - (1 << (bits_of(v.type) - 1)));
    }
    }
}

// The element that is largest without its sign.
static float extreme(const float * in) {
    return *std::max_element(in, in + QUANTS, [](float x, float y) { return std::fabs(x) < std::fabs(y); });
}

static void store_q8_0(const float * in, char * block) {
    const float factor = std::fabs(extreme(in)) / 127;
    put_half(block, factor);
    for (int i = 0; i < QUANTS; i++) {
        const float rounded = factor != 0 ? std::round(in[i] * (1 / factor)) : 0;
        reinterpret_cast<int8_t *>(block)[2 + i] = int8_t(std::fabs(rounded) <= 127 ? rounded : 0); // 0 for NaN, and
                                                                                                    // beside an
                                                                                                    // infinity
    }
}

static void store_iq4_nl(const float * in, char * block) {
    std::fill(block, block + 18, char(0));
    const float most = extreme(in);
    if (std::fabs(most) < 1e-15f) {
        return;
    }
    float products = 0, squares = 0;
    for (int i = 0; i < QUANTS; i++) {
        const float x = 1 / (most / IQ4_NL_VALUES[0]) * in[i];
        int nearest = 0; // of two that are as near, the larger
        while (nearest < 15 && !(x - IQ4_NL_VALUES[nearest] < IQ4_NL_VALUES[nearest + 1] - x)) {
            nearest++;
        }
        const float value = IQ4_NL_VALUES[nearest];
        products += in[i] * in[i] * value * in[i];
        squares += in[i] * in[i] * value * value;
        put_code(CELL_IQ4_NL, block, i, nearest);
    }
    put_half(block, products / squares);
}

static void store_coded(int32_t type, const float * in, char * block) {
    const int codes = 1 << bits_of(type), zero = has_least(type) ? 0 : codes / 2;
    const float least = has_least(type) ? *std::min_element(in, in + QUANTS) : 0;
    const float factor =
        has_least(type) ? (*std::max_element(in, in + QUANTS) - least) / (codes - 1) : extreme(in) / -(codes / 2);
    put_half(block, factor);
    if (has_least(type)) {
        put_half(block + 2, least);
    }
    for (int i = 0; i < QUANTS; i++) {
        const float rounded = factor != 0 ? (in[i] - least) * (1 / factor) + zero + .5f : zero;
        const bool defined = rounded >= 0 && rounded < 2 * codes;
        put_code(type, block, i, defined ? std::min(int(rounded), codes - 1) : zero);
    }
}

void store(const CellView & v, int head, int32_t cell, const float * in) {
    for (int j = 0; j < v.dim; j += is_quantised(v.type) ? QUANTS : 1) {
        char * const at = address(v, head, cell, j);
        switch (v.type) {
        case CELL_F32:
            std::memcpy(at, in + j, 4);
            break;
        case CELL_F16:
            put_half(at, in[j]);
            break;
        case CELL_BF16: {
            uint32_t bits; // nearest, ties to even: what is dropped is 16 bits
            std::memcpy(&bits, in + j, 4);
            const uint32_t dropped = bits & 0xffff;
            uint16_t half = uint16_t(bits >> 16);
            const bool up = dropped > 0x8000 || (dropped == 0x8000 && half % 2);
            half = uint16_t(std::isnan(in[j]) ? half | 64 : half + up);
            std::memcpy(at, &half, 2);
            break;
        }
        case CELL_Q8_0:
            store_q8_0(in + j, at);
            break;
        case CELL_IQ4_NL:
            store_iq4_nl(in + j, at);
            break;
        default:
            store_coded(v.type, in + j, at);
        }
    }
}

void gather_cells(const GatherCellsArgs & a) {
    for (int i = 0; i < a.n; i++) {
        for (int j = 0; j < a.view.dim; j++) {
            a.out[size_t(i) * a.view.dim + j] = float(element(a.view, a.head, a.cells[i], j));
        }
    }
}

void scatter_cells(const ScatterCellsArgs & a) {
    for (int i = 0; i < a.n; i++) {
        store(a.view, a.head, a.cells[i], a.in + size_t(i) * a.view.dim);
    }
}

} // namespace reference
} // namespace kvmerge
