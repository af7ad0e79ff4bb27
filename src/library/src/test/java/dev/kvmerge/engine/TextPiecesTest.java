package dev.kvmerge.engine;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;
import net.jqwik.api.Arbitraries;
import net.jqwik.api.Arbitrary;
import net.jqwik.api.Example;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.Provide;

/** Text comes out the same wherever the bytes, or the strings, are cut. */
@net.jqwik.api.Tag("fast")
class TextPiecesTest {
    @Provide
    Arbitrary<String> texts() {
        return Arbitraries.strings().ofMaxLength(40).map(TextPiecesTest::withoutLoneSurrogates);
    }

    private static String withoutLoneSurrogates(String text) {
        return new String(text.getBytes(StandardCharsets.UTF_8), StandardCharsets.UTF_8);
    }

    @Property(tries = 300)
    void charactersComeWhole(@ForAll("texts") String text, @ForAll List<Integer> cuts) {
        byte[] bytes = text.getBytes(StandardCharsets.UTF_8);
        Utf8 utf8 = new Utf8();
        StringBuilder out = new StringBuilder();
        int at = 0;
        for (int cut : cuts) {
            int n = Math.min(Math.floorMod(cut, 5), bytes.length - at);
            String piece = utf8.add(Arrays.copyOfRange(bytes, at, at + n));
            assertEquals(piece, withoutLoneSurrogates(piece));
            assertTrue(text.startsWith(out.append(piece).toString()));
            at += n;
        }
        out.append(utf8.add(Arrays.copyOfRange(bytes, at, bytes.length)));
        assertEquals(text, out.toString());
        assertEquals(0, utf8.rest().length);
    }

    @Property(tries = 300)
    void bytesThatAreNoTextAreReplacedAsJavaDoes(@ForAll byte[] bytes) {
        Utf8 utf8 = new Utf8();
        StringBuilder out = new StringBuilder();
        for (byte b : bytes) {
            out.append(utf8.add(new byte[] {b}));
        }
        String whole = new String(bytes, StandardCharsets.UTF_8);
        assertEquals(whole, utf8.rest().length == 0 ? out.toString() : out + "\uFFFD");
    }

    @Provide
    Arbitrary<String> letters() {
        return Arbitraries.strings().withChars("ab").ofMinLength(1).ofMaxLength(4);
    }

    @Provide
    Arbitrary<List<String>> stops() {
        return letters().list().ofMaxSize(3);
    }

    @Provide
    Arbitrary<List<String>> pieces() {
        return Arbitraries.strings().withChars("abc").ofMaxLength(4).list().ofMaxSize(12);
    }

    /** Looks at the text again after each character. */
    private static String untilStop(String text, List<String> stops) {
        for (int end = 1; end <= text.length(); end++) {
            String longest = "";
            for (String stop : stops) {
                if (text.substring(0, end).endsWith(stop) && stop.length() > longest.length()) {
                    longest = stop;
                }
            }
            if (!longest.isEmpty()) {
                return text.substring(0, end - longest.length()) + "|" + longest;
            }
        }
        return text;
    }

    @Property(tries = 2000)
    void aStopStringEndsTheTextBeforeItWhereverItIsCut(
            @ForAll("pieces") List<String> pieces, @ForAll("stops") List<String> stops) {
        String expected = untilStop(String.join("", pieces), stops);
        StopStrings text = new StopStrings(stops);
        StringBuilder out = new StringBuilder();
        for (String piece : pieces) {
            out.append(text.add(piece));
            assertTrue(expected.startsWith(out.toString()), "nothing of a stop string is delivered");
        }
        out.append(text.met() == null ? text.end() : "|" + text.met());
        assertEquals(expected, out.toString());
    }

    @Example
    void onlyWhatMayBeginAStopStringIsHeldBack() {
        StopStrings text = new StopStrings(List.of("###"));
        assertEquals("one ", text.add("one #"));
        assertEquals("", text.add("#"));
        assertEquals("## two", text.add(" two"));
        assertNull(text.met());
        assertEquals("", text.add("##"));
        assertEquals("", text.add("# three"));
        assertEquals("###", text.met());
        assertFalse(text.add("four").contains("four"));
    }
}
