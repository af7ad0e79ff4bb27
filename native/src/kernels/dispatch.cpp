// Chooses the kernels once: those of the best instruction set that the CPU has, or of the one that KVMERGE_ISA names.
#include "../status.hpp"
#include "kernels.hpp"

#include <cstdlib>
#include <cstring>
#include <string>
#if defined(__x86_64__)
#    include <cpuid.h>
#endif

namespace kvmerge {

#if defined(__x86_64__)
#    define KVMERGE_ISAS(X) X(avx512) X(avx2) X(generic)
#elif defined(__aarch64__)
#    define KVMERGE_ISAS(X) X(neon)
#else
#    define KVMERGE_ISAS(X) X(generic)
#endif

// CMakeLists.txt makes one object of each instruction set, which shows others this function and nothing else.
#define KVMERGE_DECLARE(isa)     \
    namespace isa {              \
    const KernelTable & table(); \
    }
KVMERGE_ISAS(KVMERGE_DECLARE)
#undef KVMERGE_DECLARE

namespace {

// Whether CPU and operating system have what CMakeLists.txt compiles for. Must not call table(), which is compiled for
// that instruction set itself.
#if defined(__x86_64__)
bool has_avx2() {
    unsigned a, b, c = 0, d;
    // By hand, since clang 14's __builtin_cpu_supports does not know F16C.
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
    return f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
#if defined(__aarch64__)
bool has_neon() {
    return true;
}
#else
bool has_generic() {
    return true;
}
#endif

struct Isa {
    const char * name;
    bool (*runs_here)();
    const KernelTable & (*table)();
};

// Best first.
const Isa isas[] = {
#define KVMERGE_ENTRY(isa) {#isa, has_##isa, isa::table},
    KVMERGE_ISAS(KVMERGE_ENTRY)
#undef KVMERGE_ENTRY
};

const KernelTable & choose(const char * name) {
    std::string available;
    for (const Isa & isa : isas) {
        if (!isa.runs_here()) {
            continue;
        }
        if (!name || std::strcmp(name, isa.name) == 0) {
            return isa.table();
        }
        available += (available.empty() ? "" : ", ") + std::string(isa.name);
    }
    throw Error(
        KVMERGE_E_UNSUPPORTED,
        text("KVMERGE_ISA is '%.32s': this machine has %s; unset it for the best of them", name, available.c_str()));
}

} // namespace

const KernelTable & kernels() {
    static const KernelTable & chosen = [&]() -> const KernelTable & {
#if defined(__x86_64__)
        __builtin_cpu_init();
#endif
        const char * const name = std::getenv("KVMERGE_ISA");
        return choose(name && *name ? name : nullptr);
    }();
    return chosen;
}

} // namespace kvmerge
