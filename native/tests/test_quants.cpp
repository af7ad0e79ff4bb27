// Quantised cells against ggml itself, whose libraries lie in the folder that is given: the same bytes, and read as
// ggml reads them.
#include "isa.hpp"
#include "kernel_tests.hpp"
#include "real_llama.hpp"

namespace {

struct Ggml {
    void (*quantize)(const float *, void *, int64_t);
    void (*dequantize)(const void *, float *, int64_t);
};

Ggml functions_of(const char * type) {
    const auto find = [](const std::string & name) {
        void * const found = dlsym(RTLD_DEFAULT, name.c_str());
        if (!found) {
            std::printf("no %s in ggml\n", name.c_str());
            std::exit(1);
        }
        return found;
    };
    const std::string name = type;
    return {reinterpret_cast<decltype(Ggml::quantize)>(find("quantize_row_" + name + "_ref")),
            reinterpret_cast<decltype(Ggml::dequantize)>(find("dequantize_row_" + name))};
}

// Some compilers fuse ggml's multiplications and additions on this architecture, and then a tie may go the other way.
constexpr bool MAY_BE_FUSED =
#if defined(__aarch64__)
    true;
#else
    false;
#endif

void test(const KernelTable & table, CellType type, const char * name, Random & random) {
    const Ggml ggml = functions_of(name);
    const int dim = QUANTS * random.integer(1, 4), heads = random.integer(1, 3), head = random.integer(0, heads - 1);
    const size_t row = bytes_of(type, size_t(heads) * dim), bytes = bytes_of(type, size_t(dim));
    std::vector<uint8_t> cell(row), expected(bytes);
    std::vector<float> x = random.normals(size_t(dim)), read(x), expected_read(x);
    for (int i = 0; i < dim; i += QUANTS) {
        spoil_block(random, x.data() + i);
    }
    const CellView view = {cell.data(), type, 0, dim, 1, std::ptrdiff_t(row)};
    const int32_t zero = 0;
    ggml.quantize(x.data(), expected.data(), dim);
    ggml.dequantize(expected.data(), expected_read.data(), dim);
    table.scatter_cells({view, head, &zero, 1, x.data()});
    const uint8_t * const written = cell.data() + size_t(head) * bytes;
    table.gather_cells({view, head, &zero, 1, read.data()});
    for (int b = 0; b < dim / QUANTS; b++) {
        const size_t at = bytes_of(type, size_t(b) * QUANTS);
        const float * const block = x.data() + b * QUANTS;
        // ggml leaves the codes of a block of zeros in IQ4_NL as the memory was.
        const bool zeros = type == CELL_IQ4_NL && std::all_of(block, block + QUANTS, [](float e) { return e == 0; });
        const bool same = std::memcmp(written + at, expected.data() + at, bytes_of(type, QUANTS)) == 0;
        float largest = 0;
        for (int i = 0; i < QUANTS; i++) {
            largest = std::max(largest, std::fabs(block[i]));
        }
        for (int i = b * QUANTS; i < (b + 1) * QUANTS; i++) {
            const double a_code = MAY_BE_FUSED ? largest / 6 : 0;
            CHECK(same || zeros || MAY_BE_FUSED);
            CHECK_NEAR(read[i], expected_read[i], a_code, 0);
        }
    }
}

} // namespace

int main(int argc, char ** argv) {
    if (argc != 2) {
        std::printf("usage: %s FOLDER-OF-LLAMA.CPP'S-LIBRARIES\n", argv[0]);
        return 2;
    }
    skip_without_isa();
    load(argv[1]);
    const unsigned seed = seed_of(0, argv);
    const struct {
        CellType type;
        const char * name;
    } types[] = {{CELL_Q8_0, "q8_0"}, {CELL_Q4_0, "q4_0"}, {CELL_Q4_1, "q4_1"},
                 {CELL_Q5_0, "q5_0"}, {CELL_Q5_1, "q5_1"}, {CELL_IQ4_NL, "iq4_nl"}};
    for (const auto & t : types) {
        std::printf("%s\n", t.name);
        for (unsigned i = 0; i < 1000; i++) {
            Random random(seed + i);
            test(kernels(), t.type, t.name, random);
        }
        for (unsigned i = 0; i < 1000; i++) {
            Random random(seed + i);
            test(reference_kernels(), t.type, t.name, random);
        }
    }
    std::printf("ok\n");
}
