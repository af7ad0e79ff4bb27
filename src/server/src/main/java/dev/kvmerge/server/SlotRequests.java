package dev.kvmerge.server;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.ObjectNode;
import dev.kvmerge.KvmergeException;
import dev.kvmerge.engine.CellsView.Fate;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Set;
import java.util.regex.Pattern;

/** /slots and what is below it: what slots hold, and saving, restoring and erasing them. */
final class SlotRequests {
    private static final System.Logger LOG = System.getLogger(SlotRequests.class.getName());
    private static final Pattern FILE = Pattern.compile("[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}");

    private final Room pictures = new Room(2, Duration.ofSeconds(10)); // each copies what became of every token
    private final Inference inference;
    private final Slots slots;
    private final ServerOptions options;
    private final int context;

    SlotRequests(Inference inference, Slots slots, ServerOptions options, int context) {
        this.inference = inference;
        this.slots = slots;
        this.options = options;
        this.context = context;
    }

    /** All slots, as llama-server lists them. */
    ArrayNode list() {
        if (!options.showSlots()) {
            throw ApiException.notEnabled("This server does not show its slots. Start it with --slots.");
        }
        ArrayNode list = Json.object().arrayNode();
        Set<Integer> working = slots.working();
        for (Slot slot : slots.all()) {
            ObjectNode one = list.addObject();
            Slot.Fill fill = slot.fill();
            one.put("id", slot.id());
            one.put("n_ctx", context);
            one.put("is_processing", working.contains(slot.id()));
            one.put("id_task", slot.task());
            one.putArray("next_token").addObject().put("n_decoded", slot.generated());
            one.putObject("kvmerge")
                    .put("tokens", fill.tokens())
                    .put("cells", fill.cells())
                    .put("allocated", fill.allocated())
                    .put("mib", fill.mib());
        }
        return list;
    }

    /**
     * What became of each token that a slot has read, as JSON; of two slots at a time.
     *
     * @param layer one of those that are compressed, or -1 for all layers and heads
     */
    byte[] cells(int id, int layer, int head) {
        Inference.Facts facts = inference.facts();
        if (layer >= facts.layers()) {
            throw ApiException.invalid(
                    "layer", "invalid_value", "'layer' must be 0 to " + (facts.layers() - 1) + ", not " + layer + ".");
        }
        if (head >= facts.kvHeads()) {
            throw ApiException.invalid(
                    "head", "invalid_value", "'head' must be 0 to " + (facts.kvHeads() - 1) + ", not " + head + ".");
        }
        if (layer < 0 != head < 0) {
            throw ApiException.invalid(
                    "head", "invalid_value", "'layer' and 'head' go together; without both, all heads are told of.");
        }
        if (!options.showSlots()) {
            throw ApiException.notEnabled("This server does not show its slots. Start it with --slots.");
        }
        Slot slot = slots.get(id);
        return pictures.with(1, () -> Json.bytes(cells(slot, layer, head)));
    }

    private ObjectNode cells(Slot slot, int layer, int head) {
        Inference.Cells view = slot.conversation().cells();
        int[] history = slot.conversation().tokens();
        ObjectNode body = Json.object();
        ArrayNode tokens = body.putArray("tokens");
        for (int i = 0; i < Math.min(view.tokens(), history.length); i++) {
            ObjectNode token = tokens.addObject();
            token.put("id", history[i]);
            Tokens.putPiece(token, inference.piece(history[i]));
            double[] shares = view.shares(i);
            if (layer < 0) {
                token.put("fate", word(most(shares)));
            } else {
                Fate fate = view.fate(layer, head, i);
                token.put("fate", word(fate));
                if (fate == Fate.MERGED) {
                    token.put("into", view.pivot(layer, head, i));
                }
            }
            ArrayNode all = token.putArray("shares");
            for (double share : shares) {
                all.add(share);
            }
        }
        body.put("cells", view.cellsInUse());
        body.put("allocated", view.cellsAllocated());
        body.put("pinned", view.pinned());
        body.put("mib", view.bytes() / 1048576.0);
        body.put("layers", inference.facts().layers());
        body.put("kv_heads", inference.facts().kvHeads());
        return body;
    }

    private static Fate most(double[] shares) {
        return shares[0] >= shares[1] && shares[0] >= shares[2]
                ? Fate.KEPT
                : shares[1] >= shares[2] ? Fate.MERGED : Fate.DROPPED;
    }

    private static String word(Fate fate) {
        return switch (fate) {
            case KEPT -> "kept";
            case MERGED -> "merged";
            case DROPPED -> "dropped";
        };
    }

    /** Saves, restores or erases an idle slot. */
    ObjectNode act(int id, String action, ObjectNode request) {
        if (action == null) {
            throw ApiException.invalid("action", "missing_required_parameter", "Missing required parameter: 'action'.");
        }
        slots.get(id);
        Path file =
                switch (action) {
                    case "save", "restore" -> file(request);
                    case "erase" -> null;
                    default ->
                        throw ApiException.invalid(
                                "action", "invalid_value", "'action' is save, restore or erase, not '" + action + "'.");
                };
        if (action.equals("restore") && !Files.isRegularFile(file)) {
            throw ApiException.notFound("There is no saved slot '" + file.getFileName() + "' in --slot-save-path.");
        }
        if (action.equals("save") && Files.isDirectory(file)) {
            throw ApiException.invalid("filename", "invalid_value", "'filename' is a folder in --slot-save-path.");
        }
        Slot slot = slots.takeIdle(id);
        try {
            return act(slot, action, file);
        } catch (KvmergeException | IOException e) {
            if (action.equals("restore")) { // the folder's own name is the server's
                String why = String.valueOf(e.getMessage())
                        .replace(file.toString(), file.getFileName().toString());
                throw ApiException.invalid("filename", "invalid_value", why);
            }
            LOG.log(System.Logger.Level.ERROR, "slot " + id + ": " + action + " failed", e);
            throw ApiException.internal("The slot could not do '" + action + "'; the server's log says why.");
        } finally {
            slot.look();
            slots.give(slot);
        }
    }

    private static ObjectNode act(Slot slot, String action, Path file) throws IOException {
        long start = System.nanoTime();
        ObjectNode done = Json.object();
        done.put("id_slot", slot.id());
        switch (action) {
            case "save" -> {
                slot.conversation().save(file);
                done.put("filename", file.getFileName().toString());
                done.put("n_saved", slot.conversation().tokens().length);
                done.put("n_written", Files.size(file));
                done.putObject("timings").put("save_ms", (System.nanoTime() - start) / 1e6);
            }
            case "restore" -> {
                slot.conversation().restore(file);
                done.put("filename", file.getFileName().toString());
                done.put("n_restored", slot.conversation().tokens().length);
                done.put("n_read", Files.size(file));
                done.putObject("timings").put("restore_ms", (System.nanoTime() - start) / 1e6);
            }
            default -> {
                done.put("n_erased", slot.conversation().tokens().length);
                slot.conversation().clear();
            }
        }
        return done;
    }

    private Path file(ObjectNode request) {
        if (options.slotFiles() == null) {
            throw ApiException.notEnabled("This server does not save slots. Start it with --slot-save-path FOLDER.");
        }
        Fields fields = new Fields(request);
        fields.only(Set.of("filename"));
        String name = fields.text("filename", null);
        if (name == null) {
            throw Fields.missing("filename");
        }
        if (!FILE.matcher(name).matches()) {
            throw ApiException.invalid(
                    "filename",
                    "invalid_value",
                    "'filename' is a name of letters, digits, '-', '_' and '.', without a folder.");
        }
        return options.slotFiles().resolve(name);
    }
}
