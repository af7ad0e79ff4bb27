package dev.kvmerge.kernels;

import dev.kvmerge.bindings.Kvmerge_h;
import dev.kvmerge.bindings.kvmerge_ggml;
import dev.kvmerge.bindings.kvmerge_observer_params;
import dev.kvmerge.llama.Backend;
import dev.kvmerge.llama.Shape;
import java.lang.foreign.Arena;
import java.lang.foreign.MemorySegment;
import java.lang.foreign.ValueLayout;

/** {@link Observer.Options} as kvmerge_observer_params. */
final class ObserverParams {
    private ObserverParams() {}

    /** What the native library makes an observer of. */
    static MemorySegment of(Arena local, Shape shape, int cells, int block, Observer.Options options) {
        MemorySegment params = kvmerge_observer_params.allocate(local);
        kvmerge_observer_params.n_layer(params, shape.layers());
        kvmerge_observer_params.layers(
                params,
                local.allocateFrom(
                        ValueLayout.JAVA_INT,
                        shape.layerNumbers().stream()
                                .mapToInt(Integer::intValue)
                                .toArray()));
        kvmerge_observer_params.n_head(params, shape.heads());
        kvmerge_observer_params.n_head_kv(params, shape.kvHeads());
        kvmerge_observer_params.n_cells(params, cells);
        kvmerge_observer_params.n_tokens(params, block);
        kvmerge_observer_params.observe(
                params,
                (options.mass() ? Kvmerge_h.KVMERGE_OBSERVE_MASS() : 0)
                        | (options.entropy() ? Kvmerge_h.KVMERGE_OBSERVE_ENTROPY() : 0)
                        | (options.queries() ? Kvmerge_h.KVMERGE_OBSERVE_QUERIES() : 0)
                        | (options.queryHeads() ? Kvmerge_h.KVMERGE_OBSERVE_QUERY_HEADS() : 0)
                        | switch (options.observation()) {
                            case AUTO -> 0;
                            case CAPTURE -> Kvmerge_h.KVMERGE_OBSERVE_CAPTURE();
                            case STOP -> Kvmerge_h.KVMERGE_OBSERVE_STOP();
                        });
        kvmerge_observer_params.mass_power(params, (float) options.massPower());
        kvmerge_observer_params.mass_queries(params, options.massQueries());
        kvmerge_observer_params.mass_sample(params, options.massSample());
        kvmerge_observer_params.bias(
                params,
                switch (options.bias()) {
                    case NONE -> Kvmerge_h.KVMERGE_BIAS_NONE();
                    case FOLDED -> Kvmerge_h.KVMERGE_BIAS_FOLDED();
                    case EXACT -> Kvmerge_h.KVMERGE_BIAS_EXACT();
                });
        kvmerge_observer_params.query_decay(params, (float) options.queryDecay());
        kvmerge_observer_params.ridge(params, (float) options.ridge());
        kvmerge_observer_params.device(
                params,
                options.backend() == Backend.CUDA && !options.queryHeads()
                        ? Kvmerge_h.KVMERGE_DEVICE_CUDA()
                        : Kvmerge_h.KVMERGE_DEVICE_CPU());
        kvmerge_observer_params.n_threads(params, options.threads());
        MemorySegment ggml = kvmerge_observer_params.ggml(params);
        kvmerge_ggml.tensor_get(ggml, Kvmerge.symbol("ggml_backend_tensor_get"));
        kvmerge_ggml.tensor_set(ggml, Kvmerge.symbol("ggml_backend_tensor_set"));
        kvmerge_ggml.buffer_is_host(ggml, Kvmerge.symbol("ggml_backend_buffer_is_host"));
        kvmerge_ggml.buffer_get_type(ggml, Kvmerge.symbol("ggml_backend_buffer_get_type"));
        kvmerge_ggml.buft_alloc_buffer(ggml, Kvmerge.symbol("ggml_backend_buft_alloc_buffer"));
        kvmerge_ggml.buffer_get_base(ggml, Kvmerge.symbol("ggml_backend_buffer_get_base"));
        kvmerge_ggml.buffer_clear(ggml, Kvmerge.symbol("ggml_backend_buffer_clear"));
        kvmerge_ggml.buffer_free(ggml, Kvmerge.symbol("ggml_backend_buffer_free"));
        return params;
    }
}
