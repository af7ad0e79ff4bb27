// Which instruction set is chosen, and what is refused. Each case is a process of its own: the choice is made once.
#include "check.hpp"
#include "kernels/kernels.hpp"
#include "kvmerge.h"

#include <cstring>
#include <string>
#include <sys/wait.h>
#include <unistd.h>

// Runs body with KVMERGE_ISA set, or unset where it is null, and gives back what it returns, or -1 where it crashed.
template <class Body>
static int in_child(const char * isa, Body && body) {
    std::fflush(stdout);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        isa ? setenv("KVMERGE_ISA", isa, 1) : unsetenv("KVMERGE_ISA");
        const int result = body();
        std::fflush(stdout);
        _exit(result);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static constexpr const char * ALL[] = {"avx512", "avx2", "neon", "generic"}; // best first

static int chosen() {
    for (int i = 0; i < 4; i++) {
        if (std::strcmp(kvmerge_isa(), ALL[i]) == 0) {
            return i;
        }
    }
    return 77;
}

static kvmerge_status create_observer() {
    kvmerge_observer_params p = {};
    p.n_layer = p.n_head = p.n_head_kv = 1;
    p.n_cells = p.n_tokens = 8;
    p.mass_power = 1;
    p.query_decay = .7f;
    p.ridge = .05f;
    p.n_threads = 1;
    p.ggml.tensor_get = [](const ggml_tensor *, void *, size_t, size_t) {};
    p.ggml.tensor_set = [](ggml_tensor *, const void *, size_t, size_t) {};
    p.ggml.buffer_is_host = [](ggml_backend_buffer *) { return true; };
    kvmerge_observer * observer = nullptr;
    const kvmerge_status status = kvmerge_observer_create(&p, &observer);
    CHECK((status == KVMERGE_OK) == (observer != nullptr));
    if (observer) {
        kvmerge_observer_free(observer);
    }
    return status;
}

// What needs kernels refuses, with a message that says what to do; what does not, works. Nothing crashes, the second
// time neither.
static int refuses(const char * name) {
    const float logits[2] = {0, 1};
    char packed[64];
    float entropy;
    int32_t span[2];
    const double rates[2] = {1, 1};
    const float prior[2] = {0, 0}, weight[4] = {0, 0, 0, 0};
    const int32_t position[2] = {0, 1};
    double expected[2];
    const kvmerge_groups_params groups = {2, 1, 1, 0, 2, 1, 2, 1.0, logits, logits, rates};
    for (int time = 0; time < 2; time++) {
        const kvmerge_status statuses[] = {
            kvmerge_device_check(KVMERGE_DEVICE_CPU),
            kvmerge_device_check(KVMERGE_DEVICE_CUDA),
            create_observer(),
            kvmerge_pack_log_probs(logits, 1, 2, 1, packed),
            kvmerge_row_entropy(logits, 1, 2, &entropy),
            kvmerge_find_spans(logits, 1, 2, 0, 2, .5f, 2, span),
            kvmerge_expected_attention(2, rates, prior, position, 2, 1e-6, weight, expected),
            kvmerge_plan_groups(&groups, span, nullptr),
        };
        for (const kvmerge_status status : statuses) {
            CHECK(status == KVMERGE_E_UNSUPPORTED);
        }
        const std::string message = kvmerge_last_error();
        CHECK(message.find(std::string("KVMERGE_ISA is '") + name + "'") != std::string::npos);
        CHECK(message.find("this machine has ") != std::string::npos);
        CHECK(std::strlen(kvmerge_isa()) == 0);
        CHECK(kvmerge_last_error() != std::string());
        CHECK(std::strlen(kvmerge_version()) > 0);
    }
    return 0;
}

int main(int argc, char ** argv) {
    const int best = in_child(nullptr, chosen);
    CHECK(best >= 0 && best < 4);
    std::printf("best: %s\n", ALL[best]);
    if (argc > 1) { // as under an emulated CPU: what it is to be
        CHECK(std::strcmp(ALL[best], argv[1]) == 0);
    }
    CHECK(in_child("", chosen) == best);
    for (int i = 0; i < 4; i++) {
        const bool neon = std::strcmp(ALL[i], "neon") == 0;
        const bool here = i == best || (i > best && !neon && std::strcmp(ALL[best], "neon") != 0);
        std::printf("%s: %s\n", ALL[i], here ? "here" : "not here");
        CHECK(here ? in_child(ALL[i], chosen) == i : in_child(ALL[i], [i] { return refuses(ALL[i]); }) == 0);
    }
    for (const char * unknown : {"AVX2", "avx", "sse", " generic", "0"}) {
        CHECK(in_child(unknown, [unknown] { return refuses(unknown); }) == 0);
    }
    // The kernels that run are those of the name.
    CHECK(in_child(ALL[best], [] { return std::strcmp(kvmerge::kernels().isa, kvmerge_isa()); }) == 0);
    std::printf("ok\n");
}
