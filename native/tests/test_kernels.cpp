// Every kernel of the list, in every version that this machine's CPU can run.
#include "kernel_tests.hpp"

int main(int argc, char ** argv) {
    const unsigned seed = seed_of(argc, argv), times = 200;
    for (const KernelTable * const * t = runnable_kernels(); *t; t++) {
        const KernelTable & table = **t;
        const char * const isa = table.isa;
        KVMERGE_KERNELS(KVMERGE_TEST)
        test_rotation_composes(table);
        test_entropy_of_known_rows(table);
    }
    std::printf("ok\n");
}
