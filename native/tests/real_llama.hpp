// llama.cpp's functions, found by name in the folder that is given: nothing is linked to it. And a tiny model in it.
#pragma once

#include "check.hpp"
#include "isa.hpp"
#include "kvmerge.h"
#include "tiny_gguf.hpp"

#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <dirent.h>
#include <dlfcn.h>
#include <string>
#include <unistd.h>
#include <vector>

#define LLAMA_FUNCTIONS(X)               \
    X(ggml_backend_load_all_from_path)   \
    X(ggml_backend_tensor_get)           \
    X(ggml_backend_tensor_set)           \
    X(ggml_backend_buffer_is_host)       \
    X(ggml_backend_buffer_get_type)      \
    X(ggml_backend_buft_alloc_buffer)    \
    X(ggml_backend_buffer_get_base)      \
    X(ggml_backend_buffer_clear)         \
    X(ggml_backend_buffer_free)          \
    X(ggml_backend_reg_by_name)          \
    X(ggml_backend_reg_get_proc_address) \
    X(ggml_backend_register)             \
    X(llama_backend_init)                \
    X(llama_log_set)                     \
    X(llama_model_default_params)        \
    X(llama_model_load_from_file)        \
    X(llama_model_free)                  \
    X(llama_context_default_params)      \
    X(llama_init_from_model)             \
    X(llama_free)                        \
    X(llama_batch_get_one)               \
    X(llama_decode)                      \
    X(llama_synchronize)                 \
    X(llama_get_logits_ith)              \
    X(llama_get_memory)                  \
    X(llama_memory_seq_rm)               \
    X(llama_memory_seq_add)              \
    X(llama_memory_seq_pos_max)          \
    X(llama_n_ctx_seq)                   \
    X(llama_n_seq_max)                   \
    X(llama_n_batch)                     \
    X(llama_state_seq_get_size)          \
    X(llama_state_seq_get_data)          \
    X(llama_state_seq_set_data)

inline struct Llama {
#define KVMERGE_MEMBER(name) decltype(&::name) name = nullptr;
    LLAMA_FUNCTIONS(KVMERGE_MEMBER)
#undef KVMERGE_MEMBER
} llama;

inline void load(const std::string & folder) {
    std::vector<std::string> files;
    DIR * const dir = opendir(folder.c_str());
    CHECK(dir);
    while (const dirent * entry = readdir(dir)) {
        files.push_back(entry->d_name);
    }
    closedir(dir);
    for (const std::string library : {"libggml-base.", "libggml.", "libllama."}) {
        const auto file =
            std::find_if(files.begin(), files.end(), [&](const auto & f) { return f.rfind(library, 0) == 0; });
        CHECK(file != files.end());
        if (!dlopen((folder + "/" + *file).c_str(), RTLD_NOW | RTLD_GLOBAL)) {
            std::printf("%s\n", dlerror());
            std::exit(1);
        }
    }
#define KVMERGE_FIND(name)                                                        \
    llama.name = reinterpret_cast<decltype(&::name)>(dlsym(RTLD_DEFAULT, #name)); \
    if (!llama.name) {                                                            \
        std::printf("no %s in %s\n", #name, folder.c_str());                      \
        std::exit(1);                                                             \
    }
    LLAMA_FUNCTIONS(KVMERGE_FIND)
#undef KVMERGE_FIND
    llama.llama_log_set(
        [](ggml_log_level level, const char * text, void *) {
            if (level == GGML_LOG_LEVEL_ERROR) {
                std::printf("%s", text);
            }
        },
        nullptr);
    llama.llama_backend_init();
    llama.ggml_backend_load_all_from_path(folder.c_str());
}

// What an observer needs of it.
inline kvmerge_ggml ggml_entries() {
    return {llama.ggml_backend_tensor_get,        llama.ggml_backend_tensor_set,
            llama.ggml_backend_buffer_is_host,    llama.ggml_backend_buffer_get_type,
            llama.ggml_backend_buft_alloc_buffer, llama.ggml_backend_buffer_get_base,
            llama.ggml_backend_buffer_clear,      llama.ggml_backend_buffer_free};
}

inline kvmerge_llama cache_entries() {
    return {reinterpret_cast<void (*)()>(llama.llama_decode),
            llama.llama_synchronize,
            llama.llama_n_ctx_seq,
            llama.llama_n_seq_max,
            llama.llama_n_batch,
            llama.llama_get_logits_ith,
            llama.llama_get_memory,
            llama.llama_memory_seq_rm,
            llama.llama_memory_seq_pos_max,
            llama.llama_state_seq_get_size,
            llama.llama_state_seq_get_data,
            llama.llama_state_seq_set_data};
}

inline std::vector<llama_token> random_tokens(int n, unsigned seed = 11) {
    Random random(seed);
    std::vector<llama_token> tokens(static_cast<size_t>(n));
    for (llama_token & t : tokens) {
        t = random.integer(0, TinyGguf::VOCABULARY - 1);
    }
    return tokens;
}

inline void ok(kvmerge_status status) {
    if (status != KVMERGE_OK) {
        std::printf("%s\n", kvmerge_last_error());
        std::exit(1);
    }
}

inline llama_model * load_tiny_model(int layers = TinyGguf::LAYERS) {
    const char * const tmp = std::getenv("TMPDIR");
    std::string file = std::string(tmp ? tmp : "/tmp") + "/kvmerge-XXXXXX";
    const int made = mkstemp(&file[0]);
    CHECK(made >= 0);
    close(made);
    TinyGguf::write(file, layers);
    llama_model_params params = llama.llama_model_default_params();
    static const float split[16] = {1, 3}; // of several devices, the first gets the first layer and no more
    params.tensor_split = split;
    llama_model * const model = llama.llama_model_load_from_file(file.c_str(), params);
    unlink(file.c_str());
    CHECK(model);
    return model;
}

// A server of llama.cpp's RPC backend, "host:port": models are loaded onto those that were added.
inline void add_rpc_server(const char * server) {
    ggml_backend_reg * const rpc = llama.ggml_backend_reg_by_name("RPC");
    CHECK(rpc); // a llama.cpp without that backend
    const auto add = reinterpret_cast<ggml_backend_reg * (*)(const char *)>(
        llama.ggml_backend_reg_get_proc_address(rpc, "ggml_backend_rpc_add_server"));
    CHECK(add);
    ggml_backend_reg * const added = add(server);
    CHECK(added); // no server there
    llama.ggml_backend_register(added);
}

// How these tests begin: the tiny model, in the llama.cpp whose folder is the first argument. Those that know what to
// do with it take RPC servers for it too.
inline llama_model * tiny_model_for(int argc, char ** argv, int layers = TinyGguf::LAYERS, bool takes_servers = false) {
    if (argc < 2 || (argc > 2 && !takes_servers)) {
        std::printf("usage: %s FOLDER-OF-LLAMA.CPP'S-LIBRARIES%s\n", argv[0], takes_servers ? " [HOST:PORT...]" : "");
        std::exit(2);
    }
    skip_without_isa();
    load(argv[1]);
    std::for_each(argv + 2, argv + argc, add_rpc_server);
    return load_tiny_model(layers);
}
