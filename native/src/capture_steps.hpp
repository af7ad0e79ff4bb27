// The steps of capturing queries, on the CPU.
#pragma once

#include "kernels/kernels.hpp"

namespace kvmerge {

#define KVMERGE_DECLARE(step, Args) void host_##step(const Args &);
KVMERGE_DEVICE_STEPS(KVMERGE_DECLARE)
#undef KVMERGE_DECLARE

} // namespace kvmerge
