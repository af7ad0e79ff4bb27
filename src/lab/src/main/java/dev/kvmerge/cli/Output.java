package dev.kvmerge.cli;

import dev.kvmerge.KvmergeException;

/** What is printed. Java keeps a failure of standard output to itself until it is asked. */
final class Output {
    private Output() {}

    /**
     * Writes what was printed so far.
     *
     * @throws KvmergeException if it is lost, as on a full disk or where whoever read a pipe has gone
     */
    static void check() {
        if (System.out.checkError()) {
            throw new KvmergeException("standard output cannot be written: is the disk full, or the pipe closed?");
        }
    }
}
