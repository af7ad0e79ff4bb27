// kvmerge_abi: the header as the compiler saw it, as text. BindingsTest compares the Java bindings with it.
#include "kvmerge.h"

#include <string>
#include <type_traits>

namespace {

template <class T>
std::string name_of() {
    if constexpr (std::is_void_v<T>) {
        return "void";
    } else if constexpr (std::is_pointer_v<T>) {
        return "ptr";
    } else if constexpr (std::is_same_v<T, bool>) {
        return "bool";
    } else if constexpr (std::is_floating_point_v<T>) {
        return sizeof(T) == 4 ? "f32" : "f64";
    } else if constexpr (std::is_integral_v<T>) {
        return "i" + std::to_string(8 * sizeof(T));
    } else if constexpr (std::is_array_v<T>) {
        return name_of<std::remove_extent_t<T>>() + "[" + std::to_string(std::extent_v<T>) + "]";
    } else {
        return "struct[" + std::to_string(sizeof(T)) + "]";
    }
}

template <class R, class... Args>
std::string function(const char * name, R (*)(Args...)) {
    std::string line = std::string("function ") + name + " " + name_of<R>();
    ((line += " " + name_of<Args>()), ...);
    return line + "\n";
}

#define FUNCTION(f) out += function(#f, f);
#define STRUCT(s) out += "struct " #s " " + std::to_string(sizeof(s)) + "\n";
#define FIELD(s, f) \
    out += "field " #s "." #f " " + std::to_string(offsetof(s, f)) + " " + name_of<decltype(s::f)>() + "\n";
#define CONSTANT(c) out += "constant " #c " " + std::to_string(int(c)) + "\n";

std::string describe() {
    std::string out;
    FUNCTION(kvmerge_version)
    FUNCTION(kvmerge_isa)
    FUNCTION(kvmerge_last_error)
    FUNCTION(kvmerge_abi)
    FUNCTION(kvmerge_device_check)
    FUNCTION(kvmerge_observer_create)
    FUNCTION(kvmerge_observer_create_group)
    FUNCTION(kvmerge_observer_free)
    FUNCTION(kvmerge_eval_callback)
    FUNCTION(kvmerge_observer_begin)
    FUNCTION(kvmerge_observer_forget)
    FUNCTION(kvmerge_observer_stats)
    FUNCTION(kvmerge_observer_cache_info)
    FUNCTION(kvmerge_query_moments)
    FUNCTION(kvmerge_query_head_moments)
    FUNCTION(kvmerge_rotation)
    FUNCTION(kvmerge_read_cells)
    FUNCTION(kvmerge_write_cells)
    FUNCTION(kvmerge_project_cells)
    FUNCTION(kvmerge_apply)
    FUNCTION(kvmerge_expected_attention)
    FUNCTION(kvmerge_plan_groups)
    FUNCTION(kvmerge_plan_cells)
    FUNCTION(kvmerge_cache_defaults)
    FUNCTION(kvmerge_cache_create)
    FUNCTION(kvmerge_cache_free)
    FUNCTION(kvmerge_cache_decode)
    FUNCTION(kvmerge_cache_flush)
    FUNCTION(kvmerge_cache_take)
    FUNCTION(kvmerge_cache_usage)
    FUNCTION(kvmerge_cache_columns)
    FUNCTION(kvmerge_cache_stage)
    FUNCTION(kvmerge_cache_plan)
    FUNCTION(kvmerge_cache_commit)
    FUNCTION(kvmerge_cache_pin)
    FUNCTION(kvmerge_cache_clear)
    FUNCTION(kvmerge_cache_fates)
    FUNCTION(kvmerge_cache_state_size)
    FUNCTION(kvmerge_cache_save)
    FUNCTION(kvmerge_cache_restore)
    FUNCTION(kvmerge_score)
    FUNCTION(kvmerge_packed_row_bytes)
    FUNCTION(kvmerge_pack_log_probs)
    FUNCTION(kvmerge_kl_divergence)
    FUNCTION(kvmerge_row_entropy)
    FUNCTION(kvmerge_find_spans)
    FUNCTION(kvmerge_abort_callback)
    FUNCTION(kvmerge_log_create)
    FUNCTION(kvmerge_log_free)
    FUNCTION(kvmerge_log_callback)
    FUNCTION(kvmerge_log_take)
    STRUCT(kvmerge_ggml)
    FIELD(kvmerge_ggml, tensor_get)
    FIELD(kvmerge_ggml, tensor_set)
    FIELD(kvmerge_ggml, buffer_is_host)
    FIELD(kvmerge_ggml, buffer_get_type)
    FIELD(kvmerge_ggml, buft_alloc_buffer)
    FIELD(kvmerge_ggml, buffer_get_base)
    FIELD(kvmerge_ggml, buffer_clear)
    FIELD(kvmerge_ggml, buffer_free)
    STRUCT(kvmerge_observer_params)
    FIELD(kvmerge_observer_params, n_layer)
    FIELD(kvmerge_observer_params, n_head)
    FIELD(kvmerge_observer_params, n_head_kv)
    FIELD(kvmerge_observer_params, n_cells)
    FIELD(kvmerge_observer_params, n_tokens)
    FIELD(kvmerge_observer_params, observe)
    FIELD(kvmerge_observer_params, bias)
    FIELD(kvmerge_observer_params, mass_power)
    FIELD(kvmerge_observer_params, mass_queries)
    FIELD(kvmerge_observer_params, mass_sample)
    FIELD(kvmerge_observer_params, query_decay)
    FIELD(kvmerge_observer_params, ridge)
    FIELD(kvmerge_observer_params, device)
    FIELD(kvmerge_observer_params, n_threads)
    FIELD(kvmerge_observer_params, layers)
    FIELD(kvmerge_observer_params, ggml)
    STRUCT(kvmerge_block_stats)
    FIELD(kvmerge_block_stats, n_tokens)
    FIELD(kvmerge_block_stats, n_layer_seen)
    FIELD(kvmerge_block_stats, token_cell)
    FIELD(kvmerge_block_stats, mass)
    FIELD(kvmerge_block_stats, entropy)
    FIELD(kvmerge_block_stats, observe_nanos)
    STRUCT(kvmerge_cache_info)
    FIELD(kvmerge_cache_info, n_cells)
    FIELD(kvmerge_cache_info, head_dim_k)
    FIELD(kvmerge_cache_info, head_dim_v)
    FIELD(kvmerge_cache_info, v_transposed)
    FIELD(kvmerge_cache_info, bytes)
    FIELD(kvmerge_cache_info, type_k)
    FIELD(kvmerge_cache_info, type_v)
    FIELD(kvmerge_cache_info, device)
    STRUCT(kvmerge_key_rotation)
    FIELD(kvmerge_key_rotation, n_rot)
    FIELD(kvmerge_key_rotation, neox)
    FIELD(kvmerge_key_rotation, hadamard)
    STRUCT(kvmerge_moves)
    FIELD(kvmerge_moves, target)
    FIELD(kvmerge_moves, weight)
    FIELD(kvmerge_moves, value_weight)
    FIELD(kvmerge_moves, position)
    FIELD(kvmerge_moves, dest)
    FIELD(kvmerge_moves, new_position)
    FIELD(kvmerge_moves, pivot_frame)
    STRUCT(kvmerge_groups_params)
    FIELD(kvmerge_groups_params, n)
    FIELD(kvmerge_groups_params, head_dim_k)
    FIELD(kvmerge_groups_params, head_dim_v)
    FIELD(kvmerge_groups_params, first)
    FIELD(kvmerge_groups_params, end)
    FIELD(kvmerge_groups_params, operations)
    FIELD(kvmerge_groups_params, largest_group)
    FIELD(kvmerge_groups_params, key_cost)
    FIELD(kvmerge_groups_params, keys)
    FIELD(kvmerge_groups_params, values)
    FIELD(kvmerge_groups_params, rate)
    STRUCT(kvmerge_llama)
    FIELD(kvmerge_llama, decode)
    FIELD(kvmerge_llama, synchronize)
    FIELD(kvmerge_llama, n_ctx_seq)
    FIELD(kvmerge_llama, n_seq_max)
    FIELD(kvmerge_llama, n_batch)
    FIELD(kvmerge_llama, get_logits_ith)
    FIELD(kvmerge_llama, get_memory)
    FIELD(kvmerge_llama, memory_seq_rm)
    FIELD(kvmerge_llama, memory_seq_pos_max)
    FIELD(kvmerge_llama, state_seq_get_size)
    FIELD(kvmerge_llama, state_seq_get_data)
    FIELD(kvmerge_llama, state_seq_set_data)
    STRUCT(kvmerge_cache_params)
    FIELD(kvmerge_cache_params, n_cells)
    FIELD(kvmerge_cache_params, n_block)
    FIELD(kvmerge_cache_params, n_prompt_block)
    FIELD(kvmerge_cache_params, position_range)
    FIELD(kvmerge_cache_params, keep_newest)
    FIELD(kvmerge_cache_params, pivot_frame)
    FIELD(kvmerge_cache_params, record_fates)
    FIELD(kvmerge_cache_params, mass_decay)
    FIELD(kvmerge_cache_params, recent_share)
    FIELD(kvmerge_cache_params, key_cost)
    FIELD(kvmerge_cache_params, sinks)
    FIELD(kvmerge_cache_params, largest_group)
    FIELD(kvmerge_cache_params, calibration)
    FIELD(kvmerge_cache_params, calibration_dim)
    FIELD(kvmerge_cache_params, llama)
    STRUCT(kvmerge_cache_used)
    FIELD(kvmerge_cache_used, n_tokens)
    FIELD(kvmerge_cache_used, n_used)
    FIELD(kvmerge_cache_used, n_pinned)
    FIELD(kvmerge_cache_used, position)
    FIELD(kvmerge_cache_used, over)
    FIELD(kvmerge_cache_used, broken)
    FIELD(kvmerge_cache_used, bytes)
    STRUCT(kvmerge_cache_column)
    FIELD(kvmerge_cache_column, n)
    FIELD(kvmerge_cache_column, n_pinned)
    FIELD(kvmerge_cache_column, cell)
    FIELD(kvmerge_cache_column, position)
    FIELD(kvmerge_cache_column, frame)
    FIELD(kvmerge_cache_column, mass)
    FIELD(kvmerge_cache_column, exposure)
    FIELD(kvmerge_cache_column, entropy)
    FIELD(kvmerge_cache_column, count)
    FIELD(kvmerge_cache_column, prior)
    CONSTANT(KVMERGE_OK)
    CONSTANT(KVMERGE_E_ARGUMENT)
    CONSTANT(KVMERGE_E_UNSUPPORTED)
    CONSTANT(KVMERGE_E_STATE)
    CONSTANT(KVMERGE_E_MEMORY)
    CONSTANT(KVMERGE_E_NUMERIC)
    CONSTANT(KVMERGE_E_DEVICE)
    CONSTANT(KVMERGE_OBSERVE_CELLS)
    CONSTANT(KVMERGE_OBSERVE_MASS)
    CONSTANT(KVMERGE_OBSERVE_ENTROPY)
    CONSTANT(KVMERGE_OBSERVE_QUERIES)
    CONSTANT(KVMERGE_OBSERVE_STOP)
    CONSTANT(KVMERGE_OBSERVE_CAPTURE)
    CONSTANT(KVMERGE_OBSERVE_QUERY_HEADS)
    CONSTANT(KVMERGE_BIAS_NONE)
    CONSTANT(KVMERGE_BIAS_FOLDED)
    CONSTANT(KVMERGE_BIAS_EXACT)
    CONSTANT(KVMERGE_DEVICE_CPU)
    CONSTANT(KVMERGE_DEVICE_CUDA)
    return out;
}

} // namespace

extern "C" const char * kvmerge_abi(void) {
    try {
        static const std::string text = describe();
        return text.c_str();
    } catch (...) { // out of memory: the next call tries again
        return "";
    }
}
