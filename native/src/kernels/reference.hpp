// The reference kernels, one of each.
#pragma once

#include "kernels.hpp"

namespace kvmerge {
namespace reference {

#define KVMERGE_DECLARE(name, Args) void name(const Args &);
KVMERGE_KERNELS(KVMERGE_DECLARE)
#undef KVMERGE_DECLARE

} // namespace reference
} // namespace kvmerge
