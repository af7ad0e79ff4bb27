// CUDA's version of every device kernel: on a GPU, by way of managed memory, or without one on the shim's fibers.
#include "kernel_tests.hpp"

#include "device.hpp"

#include <cuda_runtime.h>

extern "C" const Device * kvmerge_cuda_device(int version, const char ** why_not);

#ifdef KVMERGE_CUDA_SHIM
extern bool shim_has_cublas;
constexpr unsigned TIMES = 12; // a thread is a fiber here: slow
#else
static bool shim_has_cublas;
constexpr unsigned TIMES = 200;
#endif

// The kernels of many heads, as if they were of one.
struct OneHead {
    const Device & device;
    void project_cells(const ProjectCellsArgs & a) const { device.project_heads({&a, 1}); }
    void expected_attention(const ExpectedAttentionArgs & a) const { device.foresee_heads({&a, 1}); }
    void plan_groups(const PlanGroupsArgs & a) const { device.plan_heads({&a, 1}); }
};

// Heads of different sizes in one launch get the plans that they get alone, and those are the reference's.
static void test_many_heads_at_once(const Device & device, Random & random) {
    const int n_heads = random.integer(2, 5), n_cells = 90;
    const TestCells keys(random, n_heads, 32, n_cells, false), values(random, n_heads, 24, n_cells, true);
    std::vector<Vec<int32_t>> which, group, expected;
    std::vector<Vec<double>> rate;
    Vec<double> cost(n_heads), expected_cost(n_heads);
    std::vector<PlanGroupsArgs> heads;
    for (int h = 0; h < n_heads; h++) {
        const int n = random.integer(1, n_cells), first = random.integer(0, n), end = random.integer(first, n);
        which.push_back(some_cells(random, n_cells, n));
        group.emplace_back(n), expected.emplace_back(n), rate.emplace_back(n);
        for (double & r : rate.back()) {
            r = std::exp(double(random.normal()));
        }
        heads.push_back({keys.view, values.view, h, which[h].data(), n, rate[h].data(), first, end,
                         random.integer(0, end - first), 4, 0.3, group[h].data(), &cost[h], nullptr});
    }
    device.plan_heads({heads.data(), n_heads});
    for (int h = 0; h < n_heads; h++) {
        PlanGroupsArgs one = heads[h];
        one.group = expected[h].data(), one.cost = &expected_cost[h];
        device.plan_heads({&one, 1});
        CHECK(group[h] == expected[h] && cost[h] == expected_cost[h]);
        reference.plan_groups(one);
        CHECK_NEAR(cost[h], expected_cost[h], 1e-5, 2e-3);
    }
}

// Thousands of cells: more runs of prices than a warp has lanes, and choices that are far apart.
static void test_plan_of_many_cells(const Device & device, Random & random) {
    const int n = 3000, operations = random.integer(1, 60);
    const TestCells keys(random, 1, 8, n, false, CELL_F32), values(random, 1, 8, n, false, CELL_F32);
    const auto which = some_cells(random, n, n);
    Vec<double> rate(n), cost(2);
    for (double & r : rate) {
        r = std::exp(2.0 * random.normal());
    }
    Vec<int32_t> group(n), expected(n);
    PlanGroupsArgs args = {keys.view,  values.view, 0,   which.data(), n,        rate.data(), 4, n - 100,
                           operations, 8,           1.5, group.data(), &cost[0], nullptr};
    device.plan_heads({&args, 1});
    args.group = expected.data(), args.cost = &cost[1];
    reference.plan_groups(args);
    CHECK_NEAR(cost[0], cost[1], 0, 1e-4);
    CHECK(group == expected); // prices of random cells lie further apart than rounding
}

int main(int argc, char ** argv) {
    const char * why_not = nullptr;
    CHECK(!kvmerge_cuda_device(DEVICE_VERSION + 1, &why_not) && why_not);
    const Device * const device = kvmerge_cuda_device(DEVICE_VERSION, &why_not);
    if (!device) {
        std::printf("no CUDA device: %s\n", why_not);
        return 77; // skipped
    }
    test_allocate = [](size_t n) {
        void * memory = nullptr;
        CHECK(cudaMallocManaged(&memory, n ? n : 1) == cudaSuccess);
        return memory;
    };
    test_release = [](void * memory) { CHECK(cudaFree(memory) == cudaSuccess); };
    const unsigned seed = seed_of(argc, argv), times = TIMES;
    const Device & table = *device;
    for (const bool cublas : {false, true}) { // only the shim can tell them apart
        shim_has_cublas = cublas;
        const char * const isa = cublas ? "CUDA, cuBLAS if it is there" : "CUDA";
        KVMERGE_DEVICE_KERNELS(KVMERGE_TEST)
    }
    {
        const OneHead table = {*device};
        const char * const isa = "CUDA, one head";
        KVMERGE_TEST(project_cells, )
        KVMERGE_TEST(expected_attention, )
        KVMERGE_TEST(plan_groups, )
    }
    {
        const char * const isa = "CUDA";
        KVMERGE_TEST(many_heads_at_once, )
    }
    Random random(seed);
    test_plan_of_many_cells(table, random);
    test_rotation_composes(table);
    test_moved_cells_keep_bits(table);
    test_entropy_of_known_rows(table);
    CHECK(device->error() == nullptr);
    std::printf("ok\n");
}
