// The table of the kernels of one instruction set.
#include "fast.hpp"

#define KVMERGE_STRING2(x) #x
#define KVMERGE_STRING(x) KVMERGE_STRING2(x)

namespace kvmerge {
namespace KVMERGE_ISA {

const KernelTable & table() {
    static const KernelTable table = {KVMERGE_STRING(KVMERGE_ISA),
#define KVMERGE_ENTRY(name, Args) name,
                                      KVMERGE_KERNELS(KVMERGE_ENTRY)
#undef KVMERGE_ENTRY
    };
    return table;
}

} // namespace KVMERGE_ISA
} // namespace kvmerge
