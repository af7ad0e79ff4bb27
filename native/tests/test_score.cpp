// The scoring entries of the C ABI, and what they refuse.
#include "check.hpp"
#include "isa.hpp"
#include "kvmerge.h"

#include <cstring>
#include <limits>
#include <string>

static double exact_kl(const float * a, const float * b, int n) {
    double za = 0, zb = 0, kl = 0;
    for (int i = 0; i < n; i++) {
        za += std::exp(double(a[i]));
        zb += std::exp(double(b[i]));
    }
    for (int i = 0; i < n; i++) {
        const double p = std::exp(double(a[i])) / za;
        kl += p * (a[i] - std::log(za) - b[i] + std::log(zb));
    }
    return kl;
}

static void test_spans() {
    const float value[] = {.9f, .9f, .9f, .1f, .8f, .8f, .8f, .8f, .8f, .5f};
    int32_t span[10];
    CHECK(kvmerge_find_spans(value, 1, 10, 1, 9, .5f, 3, span) == KVMERGE_OK);
    const int32_t expected[] = {-1, 1, 1, -1, 4, 4, 4, 7, 7, -1};
    for (int i = 0; i < 10; i++) {
        CHECK(span[i] == expected[i]);
    }
    CHECK(kvmerge_find_spans(value, 1, 10, 5, 4, .5f, 3, span) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_find_spans(value, 1, 10, 0, 11, .5f, 3, span) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_find_spans(value, 1, 10, 0, 10, .5f, 0, span) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_find_spans(value, 1, 10, 0, 10, .5f, 3, nullptr) == KVMERGE_E_ARGUMENT);
    const float bad[] = {NAN, 1};
    CHECK(kvmerge_find_spans(bad, 1, 2, 0, 2, .5f, 3, span) == KVMERGE_E_NUMERIC);
}

int main() {
    skip_without_isa();
    test_spans();
    Random random(11);
    for (int round = 0; round < int(test_rounds(50)); round++) {
        const int rows = random.integer(1, 9), vocab = random.integer(2, 4001);
        auto a = random.normals(size_t(rows) * vocab), b = a;
        for (size_t i = 0; i < a.size(); i++) {
            a[i] *= 4;
            b[i] = a[i] + 0.3f * random.normal();
        }
        std::vector<int32_t> target(rows);
        for (int32_t & t : target) {
            t = random.integer(0, vocab - 1);
        }
        std::vector<double> nll(rows), kl(rows), self(rows);
        std::vector<uint8_t> same(rows), same_self(rows);
        std::vector<char> packed(size_t(rows * kvmerge_packed_row_bytes(vocab)));
        CHECK(kvmerge_score(a.data(), rows, vocab, target.data(), 2, nll.data()) == KVMERGE_OK);
        CHECK(kvmerge_pack_log_probs(a.data(), rows, vocab, 2, packed.data()) == KVMERGE_OK);
        CHECK(kvmerge_kl_divergence(packed.data(), b.data(), rows, vocab, 2, kl.data(), same.data()) == KVMERGE_OK);
        CHECK(kvmerge_kl_divergence(packed.data(), a.data(), rows, vocab, 2, self.data(), same_self.data()) ==
              KVMERGE_OK);
        for (int r = 0; r < rows; r++) {
            const float * x = a.data() + size_t(r) * vocab;
            double z = 0;
            for (int i = 0; i < vocab; i++) {
                z += std::exp(double(x[i]));
            }
            CHECK_NEAR(nll[r], std::log(z) - x[target[r]], 1e-5, 1e-5);
            CHECK_NEAR(kl[r], exact_kl(x, b.data() + size_t(r) * vocab, vocab), 3e-5, 1e-3);
            CHECK_NEAR(self[r], 0, 1e-5, 0); // what sixteen bits cost
            CHECK(same_self[r] == 1);
        }
    }

    // Entropy of known rows: uniform 1, one-hot 0, half of the cells uniform 1 of what is visible.
    const float rows[] = {0.25f, 0.25f, 0.25f, 0.25f, 0, 1, 0, 0, 0.5f, 0.5f, 0, 0};
    float entropy[3];
    CHECK(kvmerge_row_entropy(rows, 3, 4, entropy) == KVMERGE_OK);
    CHECK_NEAR(entropy[0], 1, 5e-6, 0);
    CHECK_NEAR(entropy[1], 0, 5e-6, 0);
    CHECK_NEAR(entropy[2], 1, 5e-6, 0);

    // Refusals say what, and write nothing.
    const float x[2] = {0, 1};
    const float bad[2] = {std::numeric_limits<float>::quiet_NaN(), 1};
    int32_t target = 2;
    double out = 42;
    CHECK(kvmerge_score(x, 1, 2, &target, 1, &out) == KVMERGE_E_ARGUMENT);
    CHECK(std::strstr(kvmerge_last_error(), "outside the vocabulary"));
    CHECK(out == 42);
    target = 1;
    CHECK(kvmerge_score(bad, 1, 2, &target, 1, &out) == KVMERGE_E_NUMERIC);
    CHECK(kvmerge_score(nullptr, 1, 2, &target, 1, &out) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_score(x, -1, 2, &target, 1, &out) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_score(x, 1, 2, &target, 0, &out) == KVMERGE_E_ARGUMENT);
    CHECK(kvmerge_row_entropy(bad, 1, 2, entropy) == KVMERGE_E_NUMERIC);
    CHECK(kvmerge_packed_row_bytes(-1) == -1);

    // Planning refuses what it would read or write outside of, and rates that are none.
    {
        const float vectors[4] = {1, 2, 3, 4};
        double rates[4] = {1, 1, 1, 1};
        int32_t group[4] = {7, 7, 7, 7};
        const kvmerge_groups_params fine = {4, 1, 1, 0, 3, 2, 8, 1.0, vectors, vectors, rates};
        const auto refused = [&](kvmerge_groups_params p, kvmerge_status status) {
            CHECK(kvmerge_plan_groups(&p, group, nullptr) == status);
            CHECK(group[0] == 7 && group[3] == 7);
        };
        CHECK(kvmerge_plan_groups(nullptr, group, nullptr) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_plan_groups(&fine, nullptr, nullptr) == KVMERGE_E_ARGUMENT);
        auto p = fine;
        p.operations = 4;
        refused(p, KVMERGE_E_ARGUMENT);
        p = fine, p.end = 5;
        refused(p, KVMERGE_E_ARGUMENT);
        p = fine, p.first = -1;
        refused(p, KVMERGE_E_ARGUMENT);
        p = fine, p.largest_group = 0;
        refused(p, KVMERGE_E_ARGUMENT);
        p = fine, p.keys = nullptr;
        refused(p, KVMERGE_E_ARGUMENT);
        p = fine, p.key_cost = NAN;
        refused(p, KVMERGE_E_ARGUMENT);
        rates[1] = -1;
        refused(fine, KVMERGE_E_NUMERIC);
        rates[1] = 1;
        double cost = -1;
        CHECK(kvmerge_plan_groups(&fine, group, &cost) == KVMERGE_OK);
        CHECK(group[3] == 3 && cost >= 0);
    }

    // So does what foresees attention.
    {
        const double rates[2] = {1, 1}, negative[2] = {1, -1};
        const float prior[2] = {0, 0}, w[4] = {1, 1, 1, 1};
        const int32_t position[2] = {3, 5};
        double expected[2] = {7, 7};
        CHECK(kvmerge_expected_attention(0, rates, prior, position, 6, 1e-6, w, expected) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_expected_attention(2, nullptr, prior, position, 6, 1e-6, w, expected) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_expected_attention(2, rates, prior, position, 6, 1e-6, nullptr, expected) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_expected_attention(2, rates, prior, position, 6, 0, w, expected) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_expected_attention(2, rates, prior, position, 5, 1e-6, w, expected) == KVMERGE_E_ARGUMENT);
        CHECK(kvmerge_expected_attention(2, negative, prior, position, 6, 1e-6, w, expected) == KVMERGE_E_NUMERIC);
        CHECK(expected[0] == 7 && expected[1] == 7);
        CHECK(kvmerge_expected_attention(2, rates, prior, position, 6, 1e-6, w, expected) == KVMERGE_OK);
        CHECK_NEAR(expected[0], 3, 0, 1e-5);
        CHECK_NEAR(expected[1], 1, 0, 1e-5);
    }

    // The log keeps warnings and errors, with their continuations, and forgets what was taken.
    kvmerge_log * log = nullptr;
    char text[64];
    CHECK(kvmerge_log_create(false, &log) == KVMERGE_OK);
    kvmerge_log_callback(2, "info\n", log);
    kvmerge_log_callback(4, "broken", log);
    kvmerge_log_callback(5, " badly\n", log);
    CHECK(kvmerge_log_take(log, text, sizeof text) == KVMERGE_OK);
    CHECK(std::string(text) == "broken badly\n");
    CHECK(kvmerge_log_take(log, text, sizeof text) == KVMERGE_OK);
    CHECK(std::string(text).empty());
    CHECK(kvmerge_log_free(log) == KVMERGE_OK);
    CHECK(kvmerge_log_free(nullptr) == KVMERGE_E_ARGUMENT);
    std::printf("ok\n");
}
