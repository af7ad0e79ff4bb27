// Every kernel of the list, in every version this machine can run, against the double-precision reference.
#include "check.hpp"
#include "kernels/kernels.hpp"

#include <cstring>
#include <limits>

using namespace kvmerge;

static const float INF = std::numeric_limits<float>::infinity();
static const float NOT_A_NUMBER = std::numeric_limits<float>::quiet_NaN();
static const KernelTable & reference = reference_kernels();

// A buffer with guard values on both sides; the destructor checks that nobody wrote there.
template <class T>
struct Guarded {
    static constexpr int MARGIN = 16;
    std::vector<T> data;
    size_t n;
    T guard;
    Guarded(size_t n, T fill = T(0), T guard = T(123)) : data(n + 2 * MARGIN, fill), n(n), guard(guard) {
        for (int i = 0; i < MARGIN; i++) {
            data[i] = data[n + MARGIN + i] = guard;
        }
    }
    ~Guarded() {
        for (int i = 0; i < MARGIN; i++) {
            CHECK(data[i] == guard && data[n + MARGIN + i] == guard);
        }
    }
    operator T *() { return data.data() + MARGIN; }
};

static std::vector<float> softmax_row(Random & random, int visible, int n, float sharpness) {
    std::vector<float> p(n, 0.0f);
    double sum = 0;
    for (int i = 0; i < visible; i++) {
        sum += p[i] = std::exp(sharpness * random.normal());
    }
    for (float & x : p) {
        x = float(x / sum);
    }
    return p;
}

static void test_attention_stats(const KernelTable & fast, Random & random) {
    const int heads = random.integer(1, 4), rows = random.integer(1, 20), cells = random.integer(1, 700);
    const int row_stride = cells + random.integer(0, 9), head_stride = rows * row_stride + random.integer(0, 5);
    const bool entropies = random.integer(0, 3) > 0;
    std::vector<float> p(size_t(heads) * head_stride, 0.0f), inverse(rows);
    for (int r = 0; r < rows; r++) {
        const int visible = random.integer(1, cells);
        inverse[r] = visible > 1 ? float(1 / std::log(double(visible))) : 0.0f;
        for (int h = 0; h < heads; h++) {
            const auto row = softmax_row(random, visible, cells, 0.1f * float(random.integer(0, 80)));
            std::copy(row.begin(), row.end(), p.begin() + h * head_stride + r * row_stride);
        }
    }
    const int case_of = random.integer(0, 9);
    if (case_of == 0) { // all masked
        std::fill(p.begin(), p.end(), 0.0f);
    } else if (case_of == 1) { // not a number
        p[random.integer(0, cells - 1)] = NOT_A_NUMBER;
    }
    const auto before = random.normals(cells);
    Guarded<float> mass(cells), expected_mass(cells), entropy(size_t(heads) * rows), expected_entropy(size_t(heads) * rows);
    std::copy(before.begin(), before.end(), (float *)mass);
    std::copy(before.begin(), before.end(), (float *)expected_mass);
    fast.attention_stats({p.data(), head_stride, row_stride, heads, rows, cells, mass, entropies ? (float *)entropy : nullptr,
                          rows, inverse.data()});
    reference.attention_stats({p.data(), head_stride, row_stride, heads, rows, cells, expected_mass,
                               entropies ? (float *)expected_entropy : nullptr, rows, inverse.data()});
    for (int c = 0; c < cells; c++) {
        CHECK_NEAR(mass[c], expected_mass[c], 1e-5, 1e-5);
    }
    for (int i = 0; i < heads * rows; i++) {
        CHECK_NEAR(entropy[i], expected_entropy[i], 1e-5, 0);
    }
}

static void test_score_stats(const KernelTable & fast, Random & random) {
    const int heads = random.integer(1, 3), rows = random.integer(1, 20), dim = random.integer(1, 70),
              cells = random.integer(1, 300);
    const int row_stride = heads * dim, head_stride = dim, mask_stride = cells + random.integer(0, 5);
    auto q = random.normals(size_t(rows) * row_stride), keys = random.normals(size_t(cells) * dim);
    std::vector<uint16_t> mask(size_t(rows) * mask_stride, 0);
    std::vector<float> inverse(rows, 0.0f);
    for (int r = 0; r < rows; r++) {
        int visible = 0;
        for (int c = 0; c < cells; c++) {
            const bool hidden = random.integer(0, 3) == 0 || (r == 0 && rows > 3); // the first row of some sees nothing
            mask[r * mask_stride + c] = hidden ? 0xfc00 : 0;
            visible += !hidden;
        }
        inverse[r] = visible > 1 ? float(1 / std::log(double(visible))) : 0.0f;
    }
    const bool masked = random.integer(0, 4) > 0;
    const float scale = 1 / std::sqrt(float(dim)), cap = random.integer(0, 3) == 0 ? 5.0f : 0.0f;
    if (random.integer(0, 9) == 0) {
        for (float & x : q) {
            x *= 60; // one cell takes all
        }
    }
    Guarded<float> mass(cells, 0.5f), expected_mass(cells, 0.5f), entropy(size_t(heads) * rows),
        expected_entropy(size_t(heads) * rows);
    const auto run = [&](const KernelTable & table, float * m, float * e) {
        table.score_stats({q.data(), head_stride, row_stride, heads, rows, dim, keys.data(), cells,
                           masked ? mask.data() : nullptr, mask_stride, scale, cap, m, e, rows, inverse.data()});
    };
    run(fast, mass, entropy);
    run(reference, expected_mass, expected_entropy);
    for (int c = 0; c < cells; c++) {
        CHECK_NEAR(mass[c], expected_mass[c], 2e-4, 2e-4);
    }
    for (int i = 0; i < heads * rows; i++) {
        CHECK_NEAR(entropy[i], expected_entropy[i], 1e-4, 0);
    }
    keys[random.integer(0, int(keys.size()) - 1)] = NOT_A_NUMBER;
    run(fast, mass, entropy);
    if (!masked) {
        double sum = 0;
        for (int c = 0; c < cells; c++) {
            sum += mass[c];
        }
        CHECK(std::isnan(sum)); // a NaN is seen in the mass, which is where the observer looks
    }
}

static void test_query_moments(const KernelTable & fast, Random & random) {
    const int heads = random.integer(1, 4), rows = random.integer(1, 20), dim = random.integer(1, 130);
    const int row_stride = dim * heads, head_stride = dim; // as llama.cpp lays queries out: [token][head][dim]
    const auto q = random.normals(size_t(rows) * row_stride);
    Guarded<float> sum(dim, 1), second(size_t(dim) * dim, 2), expected_sum(dim, 1), expected_second(size_t(dim) * dim, 2);
    fast.query_moments({q.data(), head_stride, row_stride, heads, rows, dim, sum, second});
    reference.query_moments({q.data(), head_stride, row_stride, heads, rows, dim, expected_sum, expected_second});
    for (int i = 0; i < dim; i++) {
        CHECK_NEAR(sum[i], expected_sum[i], 2e-5, 1e-5);
    }
    for (int i = 0; i < dim * dim; i++) {
        CHECK_NEAR(second[i], expected_second[i], 2e-5, 1e-5);
    }
}

static void test_fold_direction(const KernelTable & fast, Random & random) {
    const int dim = random.integer(1, 80), samples = random.integer(1, 100);
    std::vector<float> mean(dim, 0.0f), second(size_t(dim) * dim, 0.0f);
    const auto center = random.normals(dim);
    for (int s = 0; s < samples; s++) {
        auto q = random.normals(dim);
        for (int i = 0; i < dim; i++) {
            q[i] += center[i];
        }
        for (int i = 0; i < dim; i++) {
            mean[i] += q[i] / float(samples);
            for (int j = 0; j < dim; j++) {
                second[i * dim + j] += q[i] * q[j] / float(samples);
            }
        }
    }
    if (random.integer(0, 9) == 0) {
        std::fill(second.begin(), second.end(), 0.0f);
    }
    Guarded<float> u(dim), expected(dim);
    fast.fold_direction({mean.data(), second.data(), dim, 0.05, u});
    reference.fold_direction({mean.data(), second.data(), dim, 0.05, expected});
    for (int i = 0; i < dim; i++) {
        CHECK_NEAR(u[i], expected[i], 1e-5, 1e-4);
    }
}

static void test_merge_group(const KernelTable & fast, Random & random) {
    const int n = random.integer(1, 9), dim_k = 2 * random.integer(1, 70), dim_v = random.integer(1, 130);
    const int n_rot = 2 * random.integer(0, dim_k / 2);
    const auto keys = random.normals(size_t(n) * dim_k), values = random.normals(size_t(n) * dim_v);
    std::vector<float> weight(n);
    std::vector<int32_t> delta(n);
    std::vector<double> freq(n_rot / 2);
    float total = 0;
    for (int i = 0; i < n; i++) {
        total += weight[i] = std::fabs(random.normal()) + 0.01f;
        delta[i] = i == 0 ? 0 : random.integer(-100000, 100000);
    }
    for (float & w : weight) {
        w /= total;
    }
    for (int i = 0; i < n_rot / 2; i++) {
        freq[i] = std::pow(10000.0, -2.0 * i / n_rot);
    }
    for (const bool neox : {false, true}) {
        Guarded<float> key(dim_k), value(dim_v), expected_key(dim_k), expected_value(dim_v);
        const MergeGroupArgs args = {keys.data(), values.data(), weight.data(), delta.data(), n,   dim_k,
                                     dim_v,       n_rot,         neox,          freq.data(),  key, value};
        MergeGroupArgs expected = args;
        expected.key = expected_key;
        expected.value = expected_value;
        fast.merge_group(args);
        reference.merge_group(expected);
        for (int i = 0; i < dim_k; i++) {
            CHECK_NEAR(key[i], expected_key[i], 2e-6, 2e-6);
        }
        for (int i = 0; i < dim_v; i++) {
            CHECK_NEAR(value[i], expected_value[i], 2e-6, 2e-6);
        }
    }
}

static void test_step_distance(const KernelTable & fast, Random & random) {
    const int n = random.integer(1, 50), dim = random.integer(1, 130);
    const auto rows = random.normals(size_t(n) * dim);
    Guarded<float> out(n - 1), expected(n - 1);
    fast.step_distance({rows.data(), n, dim, out});
    reference.step_distance({rows.data(), n, dim, expected});
    for (int i = 0; i + 1 < n; i++) {
        CHECK_NEAR(out[i], expected[i], 0, 1e-5);
    }
}

static void test_half_to_float(const KernelTable & fast, Random & random) {
    const int offset = random.integer(0, 40000), n = random.integer(1, 25000); // from any start, all remainders of the vector
    std::vector<uint16_t> in(n);
    for (int i = 0; i < n; i++) {
        in[i] = uint16_t(offset + i);
    }
    Guarded<float> out(n), expected(n);
    fast.half_to_float({in.data(), out, n});
    reference.half_to_float({in.data(), expected, n});
    for (int i = 0; i < n; i++) {
        CHECK_NEAR(out[i], expected[i], 0, 0);
        CHECK(std::isnan(out[i]) || std::signbit(out[i]) == std::signbit(expected[i]));
    }
}

static void test_float_to_half(const KernelTable & fast, Random & random) {
    const int n = random.integer(1, 300);
    std::vector<float> in(n);
    for (float & x : in) {
        const float special[] = {0.0f,     -0.0f,         INF,           -INF,         65504.0f, 65519.99f,
                                 65520.0f, 5.9604645e-8f, 2.9802322e-8f, 6.097555e-5f, 2049.0f,  2051.0f};
        x = random.integer(0, 3) == 0 ? special[random.integer(0, 11)] : std::ldexp(random.normal(), random.integer(-30, 18));
    }
    Guarded<uint16_t> out(n), expected(n);
    fast.float_to_half({in.data(), out, n});
    reference.float_to_half({in.data(), expected, n});
    for (int i = 0; i < n; i++) {
        CHECK(out[i] == expected[i]);
    }
}

static void test_log_sum_exp(const KernelTable & fast, Random & random) {
    const int n = random.integer(1, 5000);
    auto x = random.normals(n);
    for (float & v : x) {
        v = random.integer(0, 20) == 0 ? -INF : 12 * v;
    }
    x[random.integer(0, n - 1)] = 30;
    x[random.integer(0, n - 1)] = 30; // a tie
    double lse, expected_lse;
    std::ptrdiff_t top, expected_top;
    fast.log_sum_exp({x.data(), n, &lse, &top});
    reference.log_sum_exp({x.data(), n, &expected_lse, &expected_top});
    CHECK_NEAR(lse, expected_lse, 2e-6, 1e-7);
    CHECK(top == expected_top);
}

static void test_kl_row(const KernelTable & fast, Random & random) {
    const int n = random.integer(1, 5000);
    auto x = random.normals(n);
    std::vector<uint16_t> base(n);
    const float low = -20, scale = 18.0f / 65535;
    for (int i = 0; i < n; i++) {
        base[i] = uint16_t(random.integer(0, 65535));
        x[i] = low + scale * base[i] + (random.integer(0, 1) ? 0.1f * x[i] : x[i]);
    }
    double lse, kl, expected;
    std::ptrdiff_t top;
    reference.log_sum_exp({x.data(), n, &lse, &top});
    fast.kl_row({base.data(), scale, low, x.data(), lse, n, &kl});
    reference.kl_row({base.data(), scale, low, x.data(), lse, n, &expected});
    CHECK_NEAR(kl, expected, 1e-5, 1e-5);
    CHECK(expected >= -1e-12);
}

// A rotation to another position and back, and equality with rotating from scratch: the law the merge rests on.
static void test_rotation_composes() {
    const int dim = 64;
    Random random(7);
    const auto key = random.normals(dim);
    const std::vector<float> value(1, 0.0f), one(1, 1.0f);
    std::vector<double> freq(dim / 2);
    for (int i = 0; i < dim / 2; i++) {
        freq[i] = std::pow(100000.0, -2.0 * i / dim);
    }
    const auto rotate = [&](const std::vector<float> & k, int32_t delta) {
        std::vector<float> out(dim), v(1);
        kernels().merge_group(
            {k.data(), value.data(), one.data(), &delta, 1, dim, 1, dim, true, freq.data(), out.data(), v.data()});
        return out;
    };
    const auto there = rotate(rotate(key, 4000), 37), direct = rotate(key, 4037), back = rotate(there, -4037);
    for (int i = 0; i < dim; i++) {
        CHECK_NEAR(there[i], direct[i], 3e-6, 0);
        CHECK_NEAR(back[i], key[i], 3e-6, 0);
    }
}

static void test_entropy_of_known_rows() {
    const int n = 1000;
    std::vector<float> uniform(n, 1.0f / n), one_hot(n, 0.0f), mass(n, 0.0f);
    one_hot[17] = 1;
    const float inverse = float(1 / std::log(double(n)));
    for (const KernelTable * const * t = runnable_kernels(); *t; t++) {
        float entropy = -1;
        (*t)->attention_stats({uniform.data(), n, n, 1, 1, n, mass.data(), &entropy, 1, &inverse});
        CHECK_NEAR(entropy, 1, 1e-5, 0);
        (*t)->attention_stats({one_hot.data(), n, n, 1, 1, n, mass.data(), &entropy, 1, &inverse});
        CHECK_NEAR(entropy, 0, 1e-6, 0);
    }
}

int main(int argc, char ** argv) {
    const unsigned seed = argc > 1 ? unsigned(std::atoi(argv[1])) : std::random_device{}();
    std::printf("seed %u (pass it to repeat)\n", seed);
    for (const KernelTable * const * t = runnable_kernels(); *t; t++) {
#define KVMERGE_TEST(name, Args)                       \
    {                                                  \
        std::printf("  %-16s %s\n", #name, (*t)->isa); \
        std::fflush(stdout);                           \
        for (unsigned i = 0; i < 200; i++) {           \
            Random random(seed + i);                   \
            test_##name(**t, random);                  \
        }                                              \
    }
        KVMERGE_KERNELS(KVMERGE_TEST)
#undef KVMERGE_TEST
    }
    test_rotation_composes();
    test_entropy_of_known_rows();
    std::printf("ok\n");
}
