package dev.kvmerge.llama;

import dev.kvmerge.KvmergeException;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.channels.FileChannel;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;

/**
 * Whether a shared library is whole. The dynamic linker maps a truncated one without a word, and the process dies of
 * SIGBUS at the first page that is not there.
 */
final class ElfFile {
    private static final int HEADER = 64;
    private static final int PROGRAM_HEADER = 56;
    private static final int SECTION_HEADER = 64;
    private static final int MAGIC = 0x464c457f; // 0x7f E L F
    private static final int PT_LOAD = 1;

    private ElfFile() {}

    /**
     * Refuses a file of which a part is missing; files of other formats are left to the linker.
     *
     * @throws KvmergeException naming the file
     */
    static void checkWhole(Path file) {
        try (FileChannel in = FileChannel.open(file, StandardOpenOption.READ)) {
            long size = in.size();
            ByteBuffer header = read(in, 0, HEADER);
            if (header.limit() < 4 || header.getInt(0) != MAGIC) {
                return;
            }
            if (header.limit() < HEADER) {
                throw truncated(file, size, HEADER);
            }
            if (header.get(4) != 2 || header.get(5) != 1) { // 64 bits, little endian; the linker refuses others
                return;
            }
            long programs = header.getLong(32);
            int programCount = Short.toUnsignedInt(header.getShort(56));
            long sections = header.getLong(40);
            int sectionCount = Short.toUnsignedInt(header.getShort(60));
            need(file, size, programs, (long) programCount * PROGRAM_HEADER);
            if (sections != 0) { // a library may come without
                need(file, size, sections, (long) sectionCount * SECTION_HEADER);
            }
            ByteBuffer table = read(in, programs, programCount * PROGRAM_HEADER);
            for (int i = 0; i < programCount; i++) {
                int at = i * PROGRAM_HEADER;
                if (table.getInt(at) == PT_LOAD) {
                    need(file, size, table.getLong(at + 8), table.getLong(at + 32));
                }
            }
        } catch (IOException e) {
            throw new KvmergeException("cannot read " + file + ": " + e.getMessage(), e);
        }
    }

    private static void need(Path file, long size, long offset, long length) {
        if (offset < 0 || length < 0 || length > Long.MAX_VALUE - offset || offset + length > size) {
            throw truncated(file, size, offset + length);
        }
    }

    private static KvmergeException truncated(Path file, long size, long needed) {
        return new KvmergeException("cannot load " + file + ": it is truncated, " + size + " bytes where "
                + Long.toUnsignedString(needed) + " are needed: build or fetch it again");
    }

    private static ByteBuffer read(FileChannel in, long offset, int length) throws IOException {
        ByteBuffer bytes = ByteBuffer.allocate(length).order(ByteOrder.LITTLE_ENDIAN);
        while (bytes.hasRemaining() && in.read(bytes, offset + bytes.position()) > 0) {}
        return bytes.flip();
    }
}
