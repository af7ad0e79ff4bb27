// What the JMH benchmarks call: any kernel of the list, by name. The descriptor's size is checked, its pointers are
// not, so this is not in the library.
#include "kernels/kernels.hpp"

#include <cstring>
#include <exception>

extern "C" __attribute__((visibility("default"))) int kvmerge_bench_kernel(const char * name, const void * args,
                                                                           size_t size) try {
    const kvmerge::KernelTable & table = kvmerge::kernels();
#define KVMERGE_CALL(kernel, Args)                               \
    if (std::strcmp(name, #kernel) == 0) {                       \
        if (size != sizeof(kvmerge::Args)) {                     \
            return int(sizeof(kvmerge::Args));                   \
        }                                                        \
        table.kernel(*static_cast<const kvmerge::Args *>(args)); \
        return 0;                                                \
    }
    KVMERGE_KERNELS(KVMERGE_CALL)
#undef KVMERGE_CALL
    return -1;
} catch (const std::exception &) { // KVMERGE_ISA names what is not there
    return -1;
}

// The list itself, so that a kernel cannot be left out of the benchmarks: names, one a line.
extern "C" __attribute__((visibility("default"))) const char * kvmerge_bench_list() {
#define KVMERGE_NAME(kernel, Args) #kernel "\n"
    return KVMERGE_KERNELS(KVMERGE_NAME);
#undef KVMERGE_NAME
}
