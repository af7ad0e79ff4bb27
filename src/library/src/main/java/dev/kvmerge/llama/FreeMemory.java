package dev.kvmerge.llama;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;

/**
 * How much memory the process may still take: what the system has, and what its control groups (versions 1 and 2)
 * leave. What is cached of files counts as free.
 */
public final class FreeMemory {
    private static final long UNKNOWN = Long.MAX_VALUE;

    private final Path root;

    private FreeMemory(Path root) {
        this.root = root;
    }

    /** In bytes; Long.MAX_VALUE where nobody says. */
    public static long bytes() {
        return bytes(Path.of("/"));
    }

    /** By the files of proc and sys under a root. */
    static long bytes(Path root) {
        FreeMemory memory = new FreeMemory(root);
        return Math.min(memory.system(), memory.groups());
    }

    private List<String> lines(Path file) {
        try {
            return Files.readAllLines(root.resolve(file));
        } catch (IOException e) { // another system, or no such group
            return List.of();
        }
    }

    private long system() {
        return lines(Path.of("proc/meminfo")).stream()
                .filter(line -> line.startsWith("MemAvailable:"))
                .mapToLong(line -> number(line.replaceAll("\\D", "")) * 1024)
                .findFirst()
                .orElse(UNKNOWN);
    }

    private static long number(String text) {
        try {
            return Long.parseLong(text.strip());
        } catch (NumberFormatException e) { // "max", or more than a long
            return UNKNOWN / 1024;
        }
    }

    /** The least that any of the process's groups and those around them leave. */
    private long groups() {
        long least = UNKNOWN;
        for (String line : lines(Path.of("proc/self/cgroup"))) {
            String[] part = line.split(":", 3); // number:controllers:path
            boolean second = part.length == 3 && part[1].isEmpty();
            if (!second && (part.length < 3 || !List.of(part[1].split(",")).contains("memory"))) {
                continue;
            }
            Path top = Path.of(second ? "sys/fs/cgroup" : "sys/fs/cgroup/memory");
            Path group = top.resolve(part[2].substring(1)).normalize();
            for (; group != null && group.startsWith(top); group = group.getParent()) {
                least = Math.min(
                        least,
                        second
                                ? left(group, "memory.max", "memory.current", "")
                                : left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"));
            }
        }
        return least;
    }

    /** prefix: of the names in memory.stat. */
    private long left(Path group, String limitFile, String usedFile, String prefix) {
        List<String> limit = lines(group.resolve(limitFile));
        List<String> used = lines(group.resolve(usedFile));
        if (limit.isEmpty() || used.isEmpty() || number(limit.getFirst()) >= UNKNOWN / 1024) {
            return UNKNOWN;
        }
        long files = lines(group.resolve("memory.stat")).stream()
                .filter(line -> line.startsWith(prefix + "inactive_file ") || line.startsWith(prefix + "active_file "))
                .mapToLong(line -> number(line.substring(line.indexOf(' '))))
                .sum();
        return Math.max(0, number(limit.getFirst()) - number(used.getFirst()) + files);
    }
}
