// Every kernel of the list, at the instruction set that KVMERGE_ISA names.
#include "isa.hpp"
#include "kernel_tests.hpp"

int main(int argc, char ** argv) {
    const unsigned seed = seed_of(argc, argv), times = test_rounds(200);
    skip_without_isa();
    const KernelTable & table = kernels();
    const char * const isa = table.isa;
    KVMERGE_KERNELS(KVMERGE_TEST)
    test_rotation_composes(table);
    test_moved_cells_keep_bits(table);
    test_every_half(table);
    test_entropy_of_known_rows(table);
    std::printf("ok\n");
}
