package dev.kvmerge.report;

import java.io.IOException;
import java.nio.channels.FileChannel;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.nio.file.attribute.BasicFileAttributes;
import java.util.ArrayList;
import java.util.HashSet;
import java.util.List;
import java.util.Objects;
import java.util.Set;

/**
 * A folder that one process at a time holds, by the system's lock on the file .lock in it. The system gives a lock up
 * when its process ends, however it ends; the file of a process that was killed stays, and holds nobody up. On NFS it
 * needs the server's lock manager.
 */
final class FolderLock implements AutoCloseable {
    /** Folders that this process holds, by their real paths: the system's lock tells only processes apart. */
    private static final Set<Path> HELD = new HashSet<>();

    private final Path folder;
    private final FileChannel channel;
    private final List<Path> made;

    private FolderLock(Path folder, FileChannel channel, List<Path> made) {
        this.folder = folder;
        this.channel = channel;
        this.made = made;
    }

    /** Takes a folder, making it if need be; null if another run has it. */
    static FolderLock take(Path folder) throws IOException {
        List<Path> made = missing(folder);
        Files.createDirectories(folder);
        Path real = folder.toRealPath();
        synchronized (HELD) { // before the lock file is opened: closing it again would give up the first one's lock
            if (!HELD.add(real)) {
                return null;
            }
        }
        FileChannel channel = null;
        try {
            channel = lock(real);
            return channel == null ? null : new FolderLock(real, channel, made);
        } finally {
            if (channel == null) {
                release(real);
            }
        }
    }

    /** Folders on the way that are not there, the innermost first. */
    private static List<Path> missing(Path folder) {
        List<Path> missing = new ArrayList<>();
        for (Path at = folder.toAbsolutePath(); at != null && Files.notExists(at); at = at.getParent()) {
            missing.add(at);
        }
        return missing;
    }

    /** A lock counts only on the file that is found under the name before and after: who holds one may delete it. */
    private static FileChannel lock(Path folder) throws IOException {
        Path file = folder.resolve(".lock");
        while (true) {
            Files.createDirectories(folder);
            Object before = key(file);
            FileChannel channel;
            try {
                channel = FileChannel.open(file, StandardOpenOption.CREATE, StandardOpenOption.WRITE);
            } catch (NoSuchFileException e) { // who held it has just deleted the folder too
                continue;
            }
            boolean mine = false;
            try {
                if (channel.tryLock() == null) {
                    return null;
                }
                mine = Objects.equals(before, key(file)) && Files.exists(file);
                if (mine) {
                    return channel;
                }
            } finally {
                if (!mine) {
                    channel.close();
                }
            }
        }
    }

    private static Object key(Path file) throws IOException {
        try {
            return Files.readAttributes(file, BasicFileAttributes.class).fileKey();
        } catch (NoSuchFileException e) {
            return null;
        }
    }

    private static void release(Path folder) {
        synchronized (HELD) {
            HELD.remove(folder);
        }
    }

    /** Gives the folder up; one that was made for it and is empty goes. */
    @Override
    public void close() {
        try (channel) {
            Files.deleteIfExists(folder.resolve(".lock"));
            for (Path each : made) {
                Files.delete(each);
            }
        } catch (IOException e) {
            // A folder that is not empty, which stays. The lock ends with the process at the latest.
        } finally {
            release(folder);
        }
    }
}
