package dev.kvmerge.cli;

/** Options that have another name now. The old one is accepted for a release, and not shown in help. */
final class Renamed {
    private Renamed() {}

    static void warn(String old, String today) {
        System.err.println("kvmerge: " + old + " is called " + today + " now, and will go with the next release");
    }
}
