// Chooses the kernels for the machine it runs on, once.
#include "kernels.hpp"

#include <vector>

namespace kvmerge {

#if defined(__x86_64__) || defined(_M_X64)
namespace avx512 {
const KernelTable & table();
}
namespace avx2 {
const KernelTable & table();
}
namespace generic {
const KernelTable & table();
}
#elif defined(__aarch64__)
namespace neon {
const KernelTable & table();
}
#else
namespace generic {
const KernelTable & table();
}
#endif

const KernelTable * const * runnable_kernels() {
    static const std::vector<const KernelTable *> tables = [] {
        std::vector<const KernelTable *> found;
#if defined(__x86_64__) || defined(_M_X64)
        __builtin_cpu_init();
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
            __builtin_cpu_supports("avx512vl")) {
            found.push_back(&avx512::table());
        }
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) { // every AVX2 machine has F16C
            found.push_back(&avx2::table());
        }
        found.push_back(&generic::table());
#elif defined(__aarch64__)
        found.push_back(&neon::table());
#else
        found.push_back(&generic::table());
#endif
        found.push_back(nullptr);
        return found;
    }();
    return tables.data();
}

const KernelTable & kernels() {
    return *runnable_kernels()[0];
}

} // namespace kvmerge
