package dev.kvmerge.report;

import static org.junit.jupiter.api.Assertions.assertDoesNotThrow;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.StringReader;
import java.util.Arrays;
import java.util.List;
import java.util.stream.IntStream;
import javax.xml.parsers.DocumentBuilder;
import javax.xml.parsers.DocumentBuilderFactory;
import javax.xml.parsers.ParserConfigurationException;
import net.jqwik.api.ForAll;
import net.jqwik.api.Property;
import net.jqwik.api.constraints.DoubleRange;
import net.jqwik.api.constraints.Size;
import org.junit.jupiter.api.Tag;
import org.junit.jupiter.api.Test;
import org.w3c.dom.Document;
import org.w3c.dom.NodeList;
import org.xml.sax.InputSource;

@Tag("fast")
@net.jqwik.api.Tag("fast")
class ChartTest {
    private static final DocumentBuilder PARSER = parser();

    private static DocumentBuilder parser() {
        try {
            return DocumentBuilderFactory.newInstance().newDocumentBuilder();
        } catch (ParserConfigurationException e) {
            throw new IllegalStateException(e);
        }
    }

    private static Document parsed(String svg) throws Exception {
        return PARSER.parse(new InputSource(new StringReader(svg)));
    }

    private static List<String> ticks(Scale scale) {
        return scale.ticks().stream().map(Scale.Tick::text).toList();
    }

    @Test
    void marksStandAtRoundNumbers() {
        assertEquals(List.of("50", "60", "70", "80", "90"), ticks(new Scale(false, 48, 97, 0, 1)));
        assertEquals(
                List.of("0", "0.2", "0.4", "0.6", "0.8", "1"),
                ticks(new Scale(false, 0, 1, 0, 1)).stream()
                        .filter(t -> !t.matches("0.[13579]"))
                        .toList());
        assertEquals(List.of("0.001", "0.01", "0.1", "1", "10"), ticks(new Scale(true, 0.001, 10, 0, 1)));
        assertEquals(List.of("0.01", "0.02", "0.05", "0.1"), ticks(new Scale(true, 0.01, 0.1, 0, 1)));
        assertEquals(
                List.of("0", "1", "2", "3"),
                new Scale(false, -0.5, 3.5, 0, 1)
                        .wholeTicks().stream().map(Scale.Tick::text).toList());
    }

    @Property
    void everyScaleHasMarksInOrderAndInside(
            @ForAll @Size(min = 1, max = 5) double[] values, @ForAll boolean logarithmic, @ForAll boolean fromZero) {
        Scale scale = Scale.over(values, logarithmic, fromZero, 100, 0);
        assertTrue(scale.low() < scale.high(), scale::toString);
        List<Scale.Tick> ticks = scale.ticks();
        assertTrue(ticks.size() <= 12, () -> scale + " " + ticks);
        double before = Double.POSITIVE_INFINITY;
        for (Scale.Tick tick : ticks) {
            double place = scale.place(tick.at());
            assertTrue(place < before && place >= 0 && place <= 100, () -> scale + " " + ticks);
            before = place;
        }
        for (double value : values) {
            if (Scale.shows(value, logarithmic)) {
                assertTrue(scale.low() <= value && value <= scale.high(), scale::toString);
            }
        }
    }

    @Property
    void ordinaryRangesHaveSeveralMarks(
            @ForAll @DoubleRange(min = 0.01, max = 1000) double low,
            @ForAll @DoubleRange(min = 1.2, max = 1000) double factor,
            @ForAll boolean logarithmic) {
        Scale scale = Scale.over(new double[] {low, low * factor}, logarithmic, false, 0, 1);
        assertTrue(scale.ticks().size() >= 3, () -> scale + " " + scale.ticks());
    }

    /** Also of what has no place on an axis, and of names that are not fit for XML. */
    @Property
    @net.jqwik.api.Tag("slow")
    void everyLineMakesADocument(@ForAll @Size(max = 40) double[] y, @ForAll String name, @ForAll boolean logarithmic)
            throws Exception {
        double[] x = IntStream.range(0, y.length).asDoubleStream().toArray();
        double[] error = Arrays.stream(y).map(v -> v / 3).toArray();
        String svg = Chart.lines(
                name,
                new Chart.Axis(name),
                new Chart.Axis("y", logarithmic, false),
                List.of(new Chart.Line(name, x, y, error, 1, 1), new Chart.Line("x", x, y, null, 9, 9)));
        assertDoesNotThrow(() -> parsed(svg));
        assertFalse(svg.contains("NaN") && !name.contains("NaN"), svg);
        assertFalse(svg.contains("Infinity") && !name.contains("Infinity"), svg);
    }

    @Test
    void pointsLieWhereTheyShould() throws Exception {
        double[] x = {0, 1, 2};
        double[] y = {10, 20, Double.NaN};
        Document svg = parsed(Chart.lines(
                "t", new Chart.Axis("x"), new Chart.Axis("y"), List.of(new Chart.Line("l", x, y, null, 1, 0))));
        NodeList dots = svg.getElementsByTagName("circle");
        assertEquals(3, dots.getLength(), "two points and the legend's");
        double[] first = at(dots, 0);
        double[] second = at(dots, 1);
        assertTrue(first[0] < second[0] && first[1] > second[1], "right and up");
    }

    private static double[] at(NodeList nodes, int i) {
        var attributes = nodes.item(i).getAttributes();
        return new double[] {
            Double.parseDouble(attributes.getNamedItem("cx").getNodeValue()),
            Double.parseDouble(attributes.getNamedItem("cy").getNodeValue())
        };
    }

    @Test
    void manyNamesTakeSeveralRowsOfTheLegend() throws Exception {
        double[] one = {1, 2};
        List<Chart.Line> lines = IntStream.range(0, 20)
                .mapToObj(i -> new Chart.Line("a strategy of number " + i, one, one, null, i, i))
                .toList();
        Document svg = parsed(Chart.lines("t", new Chart.Axis("x"), new Chart.Axis("y"), lines));
        NodeList texts = svg.getElementsByTagName("text");
        for (int i = 0; i < texts.getLength(); i++) {
            var attributes = texts.item(i).getAttributes();
            double x = Double.parseDouble(attributes.getNamedItem("x").getNodeValue());
            double y = Double.parseDouble(attributes.getNamedItem("y").getNodeValue());
            assertTrue(x > 0 && x < 760 && y > 0 && y < 460, texts.item(i).getTextContent() + " at " + x + ", " + y);
        }
    }

    @Test
    void aHeatMapHasItsColours() throws Exception {
        String svg = Chart.heatMap("t", "c", "r", new double[][] {{0, 1, 1}, {Double.NaN, 5, -1}}, 1, "v");
        NodeList cells = parsed(svg).getElementsByTagName("rect");
        assertEquals(
                "#440154", cells.item(1).getAttributes().getNamedItem("fill").getNodeValue(), "lowest first");
        assertEquals(
                "#fde725", cells.item(2).getAttributes().getNamedItem("fill").getNodeValue());
        assertEquals(1 + 2 + 2 + 65, cells.getLength(), "ground; two runs in each row, none for NaN; the bar");
    }
}
