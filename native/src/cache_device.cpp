// What a cache does whose table is on GPUs: no key, value or column of the table crosses the bus.
#include "cache.hpp"
#include "cell_access.hpp"
#include "merge.hpp"

#include <vector>

using namespace kvmerge;

// Decides where the columns of the table are, once the observer has seen where the cells and the attention lie.
void kvmerge_cache::place() {
    if (placed) {
        return;
    }
    in_observer(observer, [&](kvmerge_observer & o) {
        if (!o.layers[0].v.tensor()) {
            return; // nothing was decoded
        }
        o.finish_rewriting();
        if (table.used() == 0 && DeviceTable::suits(o, params)) {
            require_calibrated_for(o.layers[0].k.dim());
            there = std::make_unique<DeviceTable>(o, params, table, calibration);
            table.keep_columns_elsewhere();
        }
        placed = true;
    });
}

const CellTable::Columns & kvmerge_cache::columns() {
    if (there) {
        const Handles<kvmerge_observer>::Use use(observers(), observer, Access::SHARED);
        if (use.status() == KVMERGE_OK) {
            or_broken([&] {
                use.object().finish_rewriting();
                require_untorn(use.object());
            });
        }
        there->fetch(table);
    }
    return table.columns();
}

void kvmerge_cache::finish_rewriting() {
    if (there) {
        or_broken([&] {
            in_observer(observer, [](kvmerge_observer & o) {
                o.finish_rewriting();
                require_untorn(o); // others may have met the failure before
            });
        });
    }
}

// The observer saw it before the graph ran.
void kvmerge_cache::require_rewritten() {
    const Handles<kvmerge_observer>::Use use(observers(), observer, Access::SHARED);
    if (use.status() == KVMERGE_OK && use.object().torn) {
        broken = use.object().error ? use.object().error->what() : "an earlier call failed while it wrote cells";
        throw Error(KVMERGE_E_DEVICE, broken);
    }
}

void kvmerge_cache::take_there(int32_t n, kvmerge_block_stats * out) {
    kvmerge_block_stats stats;
    in_observer(observer, [&](kvmerge_observer & o) {
        stats = finished_block(o, observer);
        kvmerge::require_whole(o);
        require_seen(stats, n, o.observes_attention());
        const CellTable::Block block = {n, stats.token_cell, nullptr, nullptr, 0, nullptr};
        table.check(block);
        there->add(o, table, block, n_tokens, position);
        if (o.params.bias == KVMERGE_BIAS_FOLDED) {
            o.fold_on_gpu(); // what a rewriting asks for, so that it need not wait for it
        }
        if (params.n_cells == 0 || table.used() + n <= params.n_cells) { // no rewriting follows, which would look
            check(*o.device);
            o.require_captured();
        }
        table.add(block, n_tokens, position, params.mass_decay);
    });
    took(n);
    if (out) {
        *out = stats;
    }
}

void kvmerge_cache::plan_there() {
    in_observer(observer, [&](kvmerge_observer & o) {
        kvmerge::require_whole(o);
        there->plan(o, table, n_tokens);
    });
    table.forget_staged();
}

void kvmerge_cache::commit_there() {
    in_observer(observer, [&](kvmerge_observer & o) {
        kvmerge::require_whole(o);
        o.look_at_newest();
        prepare_to_rewrite(o);
        for (const int32_t cell : table.held()) {
            if (!o.is_of_sequence(cell)) {
                throw Error(KVMERGE_E_ARGUMENT, text("cell %d: the newest token does not see it: it is empty, or "
                                                     "another sequence's",
                                                     cell));
            }
        }
        there->stage(table);
        o.require_captured();
        Directions directions(o);
        std::vector<const float *> of_layer(o.layers.size(), nullptr);
        for (int layer = 0; layer < o.params.n_layer; layer++) {
            if (there->has_biases(o, layer)) {
                of_layer[size_t(layer)] = directions.of(layer);
            }
        }
        Writing writing(o);
        there->commit(o, table, of_layer);
        for (auto & l : o.layers) {
            l.k.written();
            l.v.written();
            for (Neighbours & of_head : l.neighbours) {
                of_head.all_rewritten();
            }
        }
        writing.queued();
    });
}
