package dev.kvmerge.cli;

import dev.kvmerge.chat.ModelChatTemplate;
import java.nio.file.Path;
import picocli.CommandLine.Mixin;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;

/** A bounded session, for the commands that generate. */
final class SessionOptions {
    @Mixin
    private EngineSettings engine;

    @Option(
            names = {"-c", "--cells"},
            paramLabel = "N",
            defaultValue = "2048",
            description = "KV cells that stay, however long the text gets (default: ${DEFAULT-VALUE})")
    private int cells;

    /**
     * Loads the model.
     *
     * @param template a chat template's file, or null for the model's own
     */
    EngineSettings.Loaded load(CommandSpec command, Path template) {
        String source = template == null ? null : SamplingOptions.text("--chat-template-file", template);
        EngineSettings.Loaded loaded = engine.load(command, cells, 1);
        try {
            if (source != null) {
                loaded.engine().useChatTemplate(ModelChatTemplate.of(loaded.model(), source));
            }
            return loaded;
        } catch (RuntimeException e) {
            loaded.close();
            throw e;
        }
    }
}
