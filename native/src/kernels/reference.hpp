// The reference kernels, one of each.
#pragma once

#include "kernels.hpp"

namespace kvmerge {
namespace reference {

#define KVMERGE_DECLARE(name, Args) void name(const Args &);
KVMERGE_KERNELS(KVMERGE_DECLARE)
#undef KVMERGE_DECLARE

// Element j of a head's cell; and a whole cell [dim], rounded to its type.
double element(const CellView & v, int head, int32_t cell, int j);
void store(const CellView & v, int head, int32_t cell, const float * in);

} // namespace reference
} // namespace kvmerge
