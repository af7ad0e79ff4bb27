package dev.kvmerge.cli;

import dev.kvmerge.cache.CacheOptions;
import dev.kvmerge.engine.Engine;
import dev.kvmerge.engine.EngineOptions;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import java.util.List;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;

/** A model with bounded sessions, for the commands that generate and serve. */
final class EngineSettings {
    @Mixin
    private ModelOptions model;

    @Mixin
    private StrategyOptions settings;

    @Option(
            names = "--strategy",
            paramLabel = "NAME",
            defaultValue = "entropy-merged",
            description = "decides what stays (default: ${DEFAULT-VALUE})")
    private String strategy;

    @Mixin
    private BlockOption block;

    @Mixin
    private PromptBlockOption promptBlock;

    @Option(
            names = "--fill",
            description =
                    "use all cells that llama.cpp allocates: it rounds cells and a prompt's block up to 256; 2000 cells"
                            + " with blocks of 128 become 2176")
    private boolean fill;

    @Option(
            names = "--kv-mib",
            paramLabel = "MIB",
            description = "instead of --cells: MiB that llama.cpp may allocate for all KV cells, blocks and padding"
                    + " included. The cells are of the type that loses least at that size, unless -ctk or -ctv says"
                    + " which")
    private Double mib;

    /** A loaded model with its engine, closed together. */
    record Loaded(Model model, Engine engine) implements AutoCloseable {
        @Override
        public void close() {
            engine.close();
            model.close();
        }
    }

    /**
     * Loads the model, once the options are seen to be right.
     *
     * @param cells of each session
     */
    Loaded load(CommandSpec command, int cells, int sessions) {
        if (mib != null) {
            StrategyOptions.refuse(command, List.of("--cells", "--fill"), "goes without --kv-mib");
            KvMemory.check(mib);
        }
        ComputeSettings compute = model.compute(FlashAttention.ON);
        model.checkCells(compute, settings.bias);
        Catalogue catalogue = Home.catalogue();
        Strategy chosen = Strategies.create(strategy, settings.settings(model, catalogue, List.of(strategy), command));
        int largest = promptBlock.tokens(block.tokens, usualPromptBlock(cells, chosen));
        ContextOptions.of( // refuses what no context holds
                CacheOptions.of(cells, block.tokens).withPromptBlock(largest).wanted(), largest, sessions, compute);
        ModelOptions.checkBias(compute, List.of(chosen));
        ModelOptions.checkObserved(command, List.of(chosen));
        EngineOptions options = EngineOptions.usual()
                .withCells(cells)
                .withBlock(block.tokens)
                .withPromptBlock(largest)
                .withSessions(sessions)
                .withStrategy(m -> chosen)
                .withCompute(compute);
        Model loaded = model.load(catalogue);
        try {
            if (mib != null) {
                KvMemory.Room room = new KvMemory.Room(loaded, mib, largest, sessions, compute);
                KvMemory memory = KvMemory.of(room, model.cellTypes(command, room), chosen);
                options = options.withCells(memory.cells()).withCompute(compute.withCells(memory.types()));
                System.err.println(memory.text(room, options.cache(loaded, chosen), List.of(chosen)));
            }
            return new Loaded(loaded, Engine.of(loaded, fill ? options.filled() : options));
        } catch (RuntimeException e) {
            loaded.close();
            throw e;
        }
    }

    private int usualPromptBlock(int cells, Strategy chosen) {
        boolean fits = mib == null && chosen.fewestCells(PromptBlockOption.ON_A_GPU) <= cells;
        return model.onCuda() && fits ? PromptBlockOption.ON_A_GPU : block.tokens;
    }
}
