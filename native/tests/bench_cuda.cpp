// Times of the CUDA kernels on the GPU that is here, beside copying and cuBLAS, as rows of
// docs/results/gpu-kernels.csv: medians of 30 runs, each of which ends with a wait.
#include "device.hpp"

#include <cuda_runtime.h>
#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

extern "C" const kvmerge::Device * kvmerge_cuda_device(int version, const char ** why_not);

using namespace kvmerge;

namespace {

const Device * device;

[[noreturn]] void stop(const char * what) {
    std::fprintf(stderr, "bench_cuda: %s\n", what);
    std::exit(1);
}

double seconds(const std::function<void()> & work) {
    std::vector<double> times;
    for (int i = 0; i < 31; i++) {
        const auto start = std::chrono::steady_clock::now();
        work();
        if (cudaDeviceSynchronize() != cudaSuccess) {
            stop(cudaGetErrorString(cudaGetLastError()));
        }
        times.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    std::sort(times.begin() + 1, times.end()); // the first one warms up
    return times[16];
}

// Memory of the GPU, filled with random numbers of one size, or with what is given.
struct Memory {
    void * data = nullptr;
    explicit Memory(size_t bytes) {
        if (cudaMalloc(&data, bytes) != cudaSuccess) {
            stop("the GPU's memory is full");
        }
        cudaMemset(data, 0, bytes);
    }
    template <class T>
    explicit Memory(const std::vector<T> & x) : Memory(x.size() * sizeof(T)) {
        cudaMemcpy(data, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice);
    }
    Memory(const Memory &) = delete;
    ~Memory() { cudaFree(data); }
    template <class T>
    T * as() const {
        return static_cast<T *>(data);
    }
};

std::vector<float> numbers(size_t n, float size) {
    std::vector<float> x(n);
    unsigned state = 1;
    for (float & v : x) {
        state = state * 1664525u + 1013904223u;
        v = size * (float(state >> 8) / float(1 << 24) - .5f);
    }
    return x;
}

// Random half-precision numbers of size .5 to 1: keys of zeros would give scores that never rise.
void fill_halves(const Memory & memory, size_t bytes) {
    std::vector<uint16_t> x(size_t(1) << 24);
    unsigned state = 1;
    for (uint16_t & v : x) {
        state = state * 1664525u + 1013904223u;
        v = uint16_t(0x3800 | (state >> 16 & 0x83ff));
    }
    for (size_t at = 0; at < bytes; at += 2 * x.size()) {
        cudaMemcpy(memory.as<char>() + at, x.data(), std::min(2 * x.size(), bytes - at), cudaMemcpyHostToDevice);
    }
}

void row(const char * kernel, const std::string & size, double time, const std::string & rate, const char * goal) {
    std::printf("%s,\"%s\",\"%.1f us%s\",%s\n", kernel, size.c_str(), time * 1e6, rate.c_str(), goal);
}

// The product of queries and keys alone, for comparison; its time, or 0 without cuBLAS.
double product_by_cublas(const void * queries, const void * keys, float * scores, int heads, int rows, int cells,
                         int dim) {
    using Create = int (*)(void **);
    using Product =
        int (*)(void *, int, int, int, int, int, const void *, const void *, int, int, long long, const void *, int,
                int, long long, const void *, void *, int, int, long long, int, int, int);
    constexpr int OP_N = 0, OP_T = 1, REAL_32F = 0, REAL_16F = 2, COMPUTE_32F = 68, DEFAULT = -1; // of cublas_api.h
    for (const char * name : {"libcublas.so.13", "libcublas.so.12", "libcublas.so"}) {
        void * const library = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        void * handle = nullptr;
        const auto create = library ? reinterpret_cast<Create>(dlsym(library, "cublasCreate_v2")) : nullptr;
        const auto product =
            library ? reinterpret_cast<Product>(dlsym(library, "cublasGemmStridedBatchedEx")) : nullptr;
        if (create && product && create(&handle) == 0) {
            const float one = 1, zero = 0;
            return seconds([&] {
                product(handle, OP_T, OP_N, cells, rows, dim, &one, keys, REAL_16F, heads * dim, dim, queries, REAL_16F,
                        dim, (long long)rows * dim, &zero, scores, REAL_32F, cells, (long long)rows * cells, heads,
                        COMPUTE_32F, DEFAULT);
            });
        }
    }
    return 0;
}

struct Shape {
    int layers, heads, kv_heads, rows, cells;
    int dim = 128;
};

void attention_and_queries(const Shape & s, double bandwidth) {
    const int heads_per_kv = s.heads / s.kv_heads, dim = s.dim;
    const size_t of_layer = size_t(s.heads) * size_t(s.rows) * dim, cell = size_t(s.kv_heads) * dim * 2;
    const Memory q(numbers(of_layer * size_t(s.layers), 4)), mass(size_t(s.layers) * s.kv_heads * s.cells * 4),
        entropy(size_t(s.layers) * s.heads * s.rows * 4), inverse(numbers(size_t(s.rows), .1f)),
        keys(cell * size_t(s.cells) * size_t(s.layers)), sum(size_t(s.layers) * s.kv_heads * dim * 4),
        second(size_t(s.layers) * s.kv_heads * dim * dim * 4), u(size_t(s.layers) * s.kv_heads * dim * 4);
    fill_halves(keys, cell * size_t(s.cells) * size_t(s.layers));
    std::vector<ScoreStatsArgs> scores;
    std::vector<QueryMomentsArgs> moments;
    std::vector<FoldDirectionArgs> directions;
    for (int l = 0; l < s.layers; l++) {
        const size_t kv = size_t(l) * s.kv_heads;
        const CellView view = {
            keys.as<char>() + cell * size_t(s.cells) * size_t(l), CELL_F16, 0, dim, s.cells, std::ptrdiff_t(cell)};
        scores.push_back({q.as<float>() + of_layer * size_t(l),
                          dim,
                          std::ptrdiff_t(s.heads) * dim,
                          s.kv_heads,
                          heads_per_kv,
                          s.rows,
                          view,
                          0,
                          s.cells,
                          nullptr,
                          0,
                          .088f,
                          0,
                          1,
                          2,
                          mass.as<float>() + kv * s.cells,
                          s.cells,
                          entropy.as<float>() + size_t(l) * s.heads * s.rows,
                          s.rows,
                          inverse.as<float>()});
        moments.push_back({q.as<float>() + of_layer * size_t(l), dim, std::ptrdiff_t(s.heads) * dim, s.kv_heads,
                           heads_per_kv, s.rows, dim, .9f, sum.as<float>() + kv * dim,
                           second.as<float>() + kv * dim * dim});
        directions.push_back({sum.as<float>() + kv * dim, second.as<float>() + kv * dim * dim, s.kv_heads, dim,
                              1. / s.rows, .05, u.as<float>() + kv * dim});
    }
    char size[96], rate[96];
    std::snprintf(size, sizeof size, "%d layers, %d heads of %d KV heads, %d rows, %d cells of %d", s.layers, s.heads,
                  s.kv_heads, s.rows, s.cells, dim);
    double t = seconds([&] { device->score_stats_all(scores.data(), s.layers); });
    std::snprintf(rate, sizeof rate, ", %.1f TFLOP/s of one product, keys at %.2f of copying",
                  2. * s.layers * s.heads * s.rows * double(s.cells) * dim / t / 1e12,
                  double(s.layers) * cell * s.cells / t / bandwidth);
    row("score_stats", size, t, rate, s.rows > 1 ? "250" : "10 us a layer");
    t = seconds([&] { device->query_moments_all(moments.data(), s.layers); });
    row("query_moments", size, t, "", "20 us a layer");
    t = seconds([&] { device->fold_direction_all(directions.data(), s.layers); });
    row("fold_direction", size, t, "", "30 us");
    if (s.layers == 1 && s.heads == s.kv_heads) {
        const Memory p(numbers(size_t(s.heads) * s.rows * s.cells, 1e-4f)), half_q(of_layer * 2);
        const std::ptrdiff_t stride = s.cells;
        t = seconds([&] {
            device->attention_stats({p.as<float>(), s.rows * stride, stride, s.kv_heads, heads_per_kv, s.rows, s.cells,
                                     2, mass.as<float>(), s.cells, entropy.as<float>(), s.rows, inverse.as<float>()});
        });
        std::snprintf(rate, sizeof rate, ", %.2f of copying", double(s.heads) * s.rows * s.cells * 4 / t / bandwidth);
        row("attention_stats", size, t, rate, ".8");
        if ((t = product_by_cublas(half_q.data, keys.data, p.as<float>(), s.heads, s.rows, s.cells, dim)) > 0) {
            std::snprintf(rate, sizeof rate, ", %.1f TFLOP/s",
                          2. * s.heads * s.rows * double(s.cells) * dim / t / 1e12);
            row("cuBLAS: the product alone", size, t, rate, "");
        }
    }
}

// As after a block of 128 tokens: in every head of every layer 128 pairs.
void merging(double bandwidth) {
    constexpr int layers = 32, heads = 32, dim = 128, cells = 1664, groups = 128;
    const size_t cell = size_t(heads) * dim * 2;
    std::vector<int32_t> start(groups + 1), member(2 * groups), delta(2 * groups), dest(groups);
    std::vector<double> freq(dim / 2);
    for (int g = 0; g < groups; g++) {
        start[g + 1] = 2 * g + 2;
        dest[g] = member[2 * g] = 3 + 12 * g;
        member[2 * g + 1] = 4 + 12 * g;
        delta[2 * g + 1] = -1;
    }
    for (int i = 0; i < dim / 2; i++) {
        freq[i] = std::pow(10000., -2. * i / dim);
    }
    const Memory s(start), m(member), d(delta), to(dest), w(std::vector<float>(2 * groups, .5f)),
        b(std::vector<float>(groups, .1f)), f(freq), u(size_t(dim) * 4), k(layers * cell * cells),
        v(layers * cell * cells), scratch(size_t(layers) * heads * groups * 2 * dim * 4);
    std::vector<MergeHead> all;
    for (int i = 0; i < layers * heads; i++) {
        const CellView keys = {
            k.as<char>() + size_t(i / heads) * cell * cells, CELL_F16, 0, dim, cells, std::ptrdiff_t(cell)};
        CellView values = keys;
        values.data = v.as<char>() + size_t(i / heads) * cell * cells;
        all.push_back({keys, values, i % heads, groups, s.as<int32_t>(), m.as<int32_t>(), d.as<int32_t>(),
                       w.as<float>(), w.as<float>(), to.as<int32_t>(), b.as<float>(), u.as<float>(),
                       scratch.as<float>() + size_t(i) * groups * 2 * dim, dim, 1, f.as<double>(), 0});
    }
    const double t = seconds([&] { device->merge_cells({all.data(), int(all.size())}); });
    char rate[64];
    std::snprintf(rate, sizeof rate, ", %.2f of copying",
                  double(layers) * heads * groups * 3 * 2 * dim * 2 / t / bandwidth);
    row("merge_cells", "1,024 heads x 128 pairs", t, rate, ".5");
}

// A block's planning: in every head as many operations as the block has tokens.
void planning(int heads, int kv_heads, int kept, int operations) {
    constexpr int dim = 128;
    const int n = kept + operations, layers = heads / kv_heads;
    const size_t cell = size_t(kv_heads) * dim * 2, layer = cell * size_t(n);
    std::vector<uint16_t> halves(layer / 2);
    unsigned state = 1;
    for (uint16_t & h : halves) { // of either sign, from a quarter to two
        state = state * 1664525u + 1013904223u;
        h = uint16_t((state >> 31 << 15) | (0x3400 + (state >> 16) % 0xc00));
    }
    std::vector<double> rates(size_t(heads) * n);
    for (double & r : rates) {
        state = state * 1664525u + 1013904223u;
        r = std::exp(-8. * (state >> 8) / (1 << 24));
    }
    std::vector<int32_t> all(n);
    for (int i = 0; i < n; i++) {
        all[i] = i;
    }
    const Memory keys(halves), values(halves), rate(rates), cells(all), group(size_t(heads) * n * 4),
        cost(size_t(heads) * 8), known(size_t(heads) * n * sizeof(Neighbour));
    std::vector<PlanGroupsArgs> args;
    for (int i = 0; i < heads; i++) { // all layers read the same cells
        const CellView k = {keys.data, CELL_F16, 0, dim, n, std::ptrdiff_t(cell)};
        CellView v = k;
        v.data = values.data;
        args.push_back({k, v, i % kv_heads, cells.as<int32_t>(), n, rate.as<double>() + size_t(i) * n, 4, n - kept / 4,
                        operations, 8, .05, group.as<int32_t>() + size_t(i) * n, cost.as<double>() + i,
                        known.as<Neighbour>() + size_t(i) * n});
    }
    char size[96];
    std::snprintf(size, sizeof size, "%d layers, %d KV heads, %d cells and a block of %d", layers, kv_heads, kept,
                  operations);
    row("plan_heads", size, seconds([&] { device->plan_heads({args.data(), heads}); }), "", "");
}

} // namespace

int main() {
    const char * why_not = nullptr;
    device = kvmerge_cuda_device(DEVICE_VERSION, &why_not);
    if (!device) {
        stop(why_not);
    }
    constexpr size_t LARGE = size_t(1) << 30;
    double bandwidth = 0;
    {
        const Memory from(LARGE), to(LARGE);
        const double t = seconds([&] { cudaMemcpyAsync(to.data, from.data, LARGE, cudaMemcpyDeviceToDevice); });
        bandwidth = 2. * LARGE / t; // read and written
        std::printf("kernel,size,measured,goal\n");
        row("copying", "1 GiB", t, ", " + std::to_string(int(bandwidth / 1e9)) + " GB/s", "");
    }
    attention_and_queries({32, 32, 32, 32, 1741}, bandwidth); // a block of a prompt: 32 of its rows are looked at
    attention_and_queries({32, 32, 8, 32, 10342}, bandwidth);
    attention_and_queries({22, 32, 4, 32, 4096, 64}, bandwidth);
    attention_and_queries({1, 32, 32, 512, 4096}, bandwidth);
    attention_and_queries({1, 32, 8, 512, 8192}, bandwidth);
    attention_and_queries({1, 32, 8, 1, 32768}, bandwidth);
    attention_and_queries({32, 32, 32, 128, 1664}, bandwidth); // a block of a generation
    attention_and_queries({32, 32, 8, 128, 6656}, bandwidth);
    merging(bandwidth);
    planning(1024, 32, 410, 128);
    planning(1024, 32, 1229, 512);
    planning(256, 8, 9830, 512);
    if (const char * what = device->finish()) {
        stop(what);
    }
}
