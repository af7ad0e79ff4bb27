package dev.kvmerge.cli;

import dev.kvmerge.chat.ModelChatTemplate;
import dev.kvmerge.engine.Engine;
import dev.kvmerge.engine.EngineOptions;
import dev.kvmerge.llama.ComputeSettings;
import dev.kvmerge.llama.ContextOptions.FlashAttention;
import dev.kvmerge.llama.Model;
import dev.kvmerge.models.Catalogue;
import dev.kvmerge.strategy.Strategies;
import dev.kvmerge.strategy.Strategy;
import java.nio.file.Path;
import java.util.List;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;

/** A bounded session, for the commands that generate. */
final class SessionOptions {
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

    @Option(
            names = {"-c", "--cells"},
            paramLabel = "N",
            defaultValue = "2048",
            description = "KV cells that stay, however long the text gets (default: ${DEFAULT-VALUE})")
    private int cells;

    @Option(
            names = "--block",
            paramLabel = "N",
            defaultValue = "128",
            description = "tokens between two compressions (default: ${DEFAULT-VALUE})")
    private int block;

    /** A loaded model with its engine, closed together. */
    record Loaded(Model model, Engine engine) implements AutoCloseable {
        @Override
        public void close() {
            engine.close();
            model.close();
        }
    }

    /**
     * Loads the model.
     *
     * @param template a chat template's file, or null for the model's own
     */
    Loaded load(CommandSpec command, Path template) {
        ComputeSettings compute = model.compute(FlashAttention.ON);
        model.checkCells(compute, settings.bias);
        Catalogue catalogue = Home.catalogue();
        Strategy chosen = Strategies.create(strategy, settings.settings(model, catalogue, List.of(strategy), command));
        EngineOptions options = EngineOptions.usual()
                .withCells(cells)
                .withBlock(block)
                .withStrategy(m -> chosen)
                .withCompute(compute);
        String source = template == null ? null : SamplingOptions.text("--chat-template-file", template);
        Model loaded = model.load(catalogue);
        try {
            Engine engine = Engine.of(loaded, options);
            if (source != null) {
                engine.useChatTemplate(ModelChatTemplate.of(loaded, source));
            }
            return new Loaded(loaded, engine);
        } catch (RuntimeException e) {
            loaded.close();
            throw e;
        }
    }
}
