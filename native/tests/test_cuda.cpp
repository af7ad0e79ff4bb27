// CUDA's version of every device kernel: on a GPU, by way of managed memory, or without one on the shim's fibers.
#include "kernel_tests.hpp"

#include "capture_steps.hpp"
#include "device.hpp"

#include <cuda_runtime.h>

extern "C" const Device * kvmerge_cuda_device(int version, const char ** why_not);

#ifdef KVMERGE_CUDA_SHIM
#    if defined(__SANITIZE_ADDRESS__)
constexpr unsigned TIMES = 12; // a thread is a fiber here, and the sanitizer hears of each change of fibers: slow
constexpr int MOST_CELLS = 6000;
#    else
constexpr unsigned TIMES = 40;
constexpr int MOST_CELLS = 66000;
#    endif
#else
constexpr unsigned TIMES = 200;
constexpr int MOST_CELLS = 66000;
#endif

// The device's kernels, which have finished when they return.
struct Waiting {
    const Device & device;
#define KVMERGE_MEMBER(name, Args)         \
    void name(const Args & a) const {      \
        device.name(a);                    \
        CHECK(device.finish() == nullptr); \
    }
    KVMERGE_DEVICE_KERNELS(KVMERGE_MEMBER)
    KVMERGE_HEADS_KERNELS(KVMERGE_MEMBER)
    KVMERGE_DEVICE_STEPS(KVMERGE_MEMBER)
#undef KVMERGE_MEMBER
};

// The kernels of many heads, as if they were of one.
struct OneHead {
    const Waiting & device;
    void project_cells(const ProjectCellsArgs & a) const { device.project_heads({&a, 1}); }
    void expected_attention(const ExpectedAttentionArgs & a) const { device.foresee_heads({&a, 1}); }
    void plan_groups(const PlanGroupsArgs & a) const { device.plan_heads({&a, 1}); }
};

// Heads of different sizes in one launch get the plans that they get alone, and those are the reference's.
static void test_many_heads_at_once(const Waiting & device, Random & random) {
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

// Thousands of cells: more runs of prices than a warp has lanes, choices that are far apart, groups that shared memory
// has no room for, and now and then more cells than 16 bits tell apart.
static void test_plan_of_many_cells(const Waiting & device, Random & random) {
    const int n = random.integer(0, 19) == 0 ? MOST_CELLS : 3000, operations = random.integer(1, 60);
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

// Rows of several layers: more than one launch takes pointers of, in some.
static void test_collect_queries(const Waiting & device, Random & random) {
    const int n_layers = random.integer(0, 9) == 0 ? 70 : random.integer(1, 5), row = random.integer(1, 300),
              n_rows = random.integer(0, 5), n_kv = random.integer(1, 400), n_cells = n_kv + random.integer(0, 300),
              mask_stride = n_kv + random.integer(0, 9), moved = random.integer(0, 1) * row,
              coming_rows = std::max(1, std::max(n_rows, moved / row));
    const bool masked = random.integer(0, 3) > 0, floats = random.integer(0, 1);
    Vec<float> mask_f(size_t(n_rows + 1) * mask_stride, 0.0f);
    Vec<uint16_t> mask_h(mask_f.size(), 0);
    for (size_t i = 0; i < mask_f.size(); i++) {
        if (random.integer(0, 1)) {
            mask_f[i] = -INF;
            mask_h[i] = HIDDEN;
        }
    }
    const auto run = [&](const auto & collect, unsigned seed) {
        Random same(seed);
        std::vector<Vec<float>> here, there; // queries wait where the next come, as a generation's do
        std::vector<const float *> from;
        std::vector<float *> to, coming;
        for (int i = 0; i < n_layers; i++) {
            here.push_back(normals(same, size_t(coming_rows) * row));
            there.emplace_back(std::max(1, moved), 7.0f);
        }
        for (int i = 0; i < n_layers; i++) {
            from.push_back(here[size_t(i)].data());
            coming.push_back(here[size_t(i)].data());
            to.push_back(there[size_t(i)].data());
        }
        Guarded<uint16_t> masks(size_t(n_rows) * n_cells, 1);
        Guarded<float> inverse(size_t(n_rows), 5);
        Guarded<uint8_t> newest(size_t(n_cells), 9);
        collect(CollectQueriesArgs{n_layers, from.data(), to.data(), moved, coming.data(), row, n_rows,
                                   !masked  ? nullptr
                                   : floats ? static_cast<const void *>(mask_f.data())
                                            : mask_h.data(),
                                   floats, mask_stride, n_kv, masks, n_cells, inverse, newest});
        std::vector<uint32_t> bits;
        const auto add = [&](const auto * x, size_t n) {
            for (size_t i = 0; i < n; i++) {
                uint32_t b = 0;
                std::memcpy(&b, x + i, sizeof x[i]);
                bits.push_back(b);
            }
        };
        for (int i = 0; i < n_layers; i++) {
            add(here[size_t(i)].data(), here[size_t(i)].size());
            add(there[size_t(i)].data(), there[size_t(i)].size());
        }
        add((uint16_t *)masks, masks.n);
        add((uint8_t *)newest, newest.n);
        std::vector<float> inverses((float *)inverse, (float *)inverse + n_rows);
        return std::make_pair(bits, inverses);
    };
    const unsigned seed = unsigned(random.integer(0, 1 << 20));
    const auto got = run([&](const CollectQueriesArgs & a) { device.collect_queries(a); }, seed);
    const auto expected = run(host_collect_queries, seed);
    CHECK(got.first == expected.first);
    for (int r = 0; r < n_rows; r++) {
        CHECK_NEAR(got.second[size_t(r)], expected.second[size_t(r)], 0, 1e-6);
    }
}

static void test_check_queries(const Waiting & device, Random & random) {
    const int n_layers = random.integer(1, 70), n_rows = random.integer(1, 6), row = random.integer(1, 600);
    std::vector<Vec<float>> queries, expected;
    Vec<int32_t> missing(n_layers, -1), expected_missing(n_layers, -1);
    std::vector<float *> q, e;
    std::vector<int32_t *> m, em;
    for (int i = 0; i < n_layers; i++) {
        queries.push_back(normals(random, size_t(n_rows) * row));
        for (int r = 0; r < n_rows; r++) {
            if (random.integer(0, 3) == 0) {
                std::memcpy(&queries[i][size_t(r) * row], &NOT_COME, sizeof NOT_COME);
            }
        }
        missing[i] = expected_missing[i] = random.integer(0, 5) == 0 ? 3 : -1; // 3: found earlier in this block
        expected.push_back(queries[i]);
        m.push_back(&missing[i]), em.push_back(&expected_missing[i]);
    }
    for (int i = 0; i < n_layers; i++) {
        q.push_back(queries[i].data()), e.push_back(expected[i].data());
    }
    device.check_queries({n_layers, q.data(), n_rows, row, 10, m.data()});
    host_check_queries({n_layers, e.data(), n_rows, row, 10, em.data()});
    CHECK(queries == expected && missing == expected_missing);
}

#ifdef KVMERGE_CUDA_SHIM
// What the driver may answer, and what a user then can do.
static void test_errors(const Device & device) {
    const std::pair<cudaError_t, const char *> errors[] = {
        {cudaErrorMemoryAllocation, "memory is full"},      {cudaErrorNoKernelImageForDevice, "make cuda CUDA_ARCHS="},
        {cudaErrorUnsupportedPtxVersion, "newer driver"},   {cudaErrorIllegalAddress, "Start the program anew"},
        {cudaErrorLaunchFailure, "Start the program anew"}, {cudaErrorECCUncorrectable, "Start the program anew"}};
    float * const memory = static_cast<float *>(device.allocate(4 * sizeof(float), &device));
    for (const auto & [status, remedy] : errors) {
        shim::failing() = status;
        device.zero(memory, 4 * sizeof(float));
        const char * const what = device.finish();
        CHECK(what && std::strstr(what, remedy));
        shim::failing() = cudaSuccess;
        CHECK(!device.finish()); // told once
    }
    const char * why_not = nullptr;
    shim::failing() = cudaErrorInsufficientDriver;
    CHECK(!kvmerge_cuda_device(DEVICE_VERSION, &why_not) && std::strstr(why_not, "newer driver"));
    shim::failing() = cudaErrorMemoryAllocation;
    try {
        DeviceArray<float>(device, 10, memory);
        CHECK(false);
    } catch (const Error & e) {
        CHECK(e.status == KVMERGE_E_MEMORY && std::strstr(e.what(), "no memory for 40 bytes"));
    }
    shim::failing() = cudaSuccess;
    CHECK(!device.finish());
    device.release(memory);
}

// Layers that lie on two GPUs in turns give what they give on one, and each kernel runs where its memory is.
static void test_two_gpus(const Device & device, Random & random) {
    const int layers = 5, heads = 2, rows = 9, cells = 70, dim = 32;
    std::vector<Vec<float>> q, mass, expected;
    std::vector<TestCells> keys;
    std::vector<ScoreStatsArgs> args;
    keys.reserve(layers); // they must not move
    for (int i = 0; i < layers; i++) {
        q.push_back(normals(random, size_t(rows) * heads * dim));
        keys.emplace_back(random, heads, dim, cells, false, CELL_F32);
        mass.emplace_back(heads * cells, 0.0f), expected.emplace_back(heads * cells, 0.0f);
        args.push_back({q[i].data(), dim,    heads * dim, heads, 1, rows, keys[i].view,   0,     cells,
                        nullptr,     0,      0.2f,        0,     1, 2,    mass[i].data(), cells, nullptr,
                        0,           nullptr});
        if (i % 2) {
            shim::second_gpu()[reinterpret_cast<const char *>(q[i].data())] = int(q[i].size() * sizeof(float));
        }
    }
    CHECK(device.place(q[0].data()) == 0 && device.place(q[1].data()) == 1);
    shim::counts() = {};
    device.score_stats_all(args.data(), layers);
    CHECK(device.finish() == nullptr);
    CHECK(shim::counts().waits == 2); // one for each GPU
    const int launches = shim::counts().launches;
    shim::second_gpu().clear();
    shim::counts() = {};
    for (int i = 0; i < layers; i++) {
        args[i].mass = expected[i].data();
    }
    device.score_stats_all(args.data(), layers);
    CHECK(device.finish() == nullptr && shim::counts().waits == 1);
    CHECK(launches == 5 * shim::counts().launches);    // all layers at once, against each after one of the other GPU
    for (int i = 0; i < layers * heads * cells; i++) { // cut into other parts, so not by the bit
        CHECK_NEAR(mass[i / (heads * cells)][i % (heads * cells)], expected[i / (heads * cells)][i % (heads * cells)],
                   1e-7, 1e-5);
    }
}
#endif

int main(int argc, char ** argv) {
    const char * why_not = nullptr;
#ifdef KVMERGE_CUDA_SHIM
    shim::gpus() = 2;
#endif
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
    const Waiting waiting = {*device}, &table = waiting;
    {
        const char * const isa = "CUDA";
        KVMERGE_DEVICE_KERNELS(KVMERGE_TEST)
    }
    {
        const OneHead table = {waiting};
        const char * const isa = "CUDA, one head";
        KVMERGE_TEST(project_cells, )
        KVMERGE_TEST(expected_attention, )
        KVMERGE_TEST(plan_groups, )
    }
    {
        const char * const isa = "CUDA";
        KVMERGE_TEST(many_heads_at_once, )
        KVMERGE_DEVICE_STEPS(KVMERGE_TEST)
    }
    Random random(seed);
    test_plan_of_many_cells(table, random);
    test_rotation_composes(table);
    test_moved_cells_keep_bits(table);
    test_entropy_of_known_rows(table);
    CHECK(device->finish() == nullptr);
#ifdef KVMERGE_CUDA_SHIM
    test_errors(*device);
    test_two_gpus(*device, random);
#endif
    std::printf("ok\n");
}
