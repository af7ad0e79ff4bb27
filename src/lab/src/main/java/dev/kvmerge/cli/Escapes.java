package dev.kvmerge.cli;

import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;

/** Escapes in an option's text, as llama-cli reads them (common/common.cpp, string_process_escapes). */
final class Escapes {
    private static final String NAMES = "nrt'\"\\";
    private static final String MEANINGS = "\n\r\t'\"\\";
    private static final int HEX = 16;

    private Escapes() {}

    /** The text with \n, \r, \t, \', \", \\ and \xHH, a byte of UTF-8, replaced; other backslashes are text. */
    static String replaced(String text) {
        byte[] in = text.getBytes(StandardCharsets.UTF_8);
        ByteArrayOutputStream out = new ByteArrayOutputStream(in.length);
        for (int i = 0; i < in.length; i++) {
            int known = in[i] == '\\' && i + 1 < in.length ? NAMES.indexOf(in[i + 1]) : -1;
            int code = in[i] == '\\' ? code(in, i + 1) : -1;
            if (known >= 0) {
                out.write(MEANINGS.charAt(known));
                i++;
            } else if (code >= 0) {
                out.write(code);
                i += 3;
            } else {
                out.write(in[i]);
            }
        }
        return out.toString(StandardCharsets.UTF_8);
    }

    /** What xHH stands for; -1 where there is none. */
    private static int code(byte[] in, int at) {
        if (at + 2 >= in.length || in[at] != 'x') {
            return -1;
        }
        int high = Character.digit(in[at + 1], HEX);
        int low = Character.digit(in[at + 2], HEX);
        return high < 0 || low < 0 ? -1 : HEX * high + low;
    }
}
