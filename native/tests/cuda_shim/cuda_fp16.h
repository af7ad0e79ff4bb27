// Half precision as cuda_fp16.h names it: the bits, and conversions by the compiler's own type.
#pragma once

#include <cstdint>
#include <cstring>

struct __half {
    uint16_t bits;
};
inline __half __ushort_as_half(uint16_t x) {
    return {x};
}
inline uint16_t __half_as_ushort(__half x) {
    return x.bits;
}
inline float __half2float(__half x) {
    _Float16 half;
    std::memcpy(&half, &x.bits, 2);
    return float(half);
}
inline __half __float2half_rn(float x) {
    const _Float16 half = _Float16(x);
    __half out;
    std::memcpy(&out.bits, &half, 2);
    return out;
}
