package dev.kvmerge.eval;

import java.util.ArrayList;
import java.util.List;
import java.util.Locale;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/** The words that conversations to calibrate on are made of. No thing and no value is one of {@link FactsWords}'. */
final class ToldWords {
    private ToldWords() {}

    /**
     * What can be told.
     *
     * @param statement with {@code %s} for the thing and then the value; the answer too
     * @param question with {@code %s} for the thing
     */
    record Kind(String statement, String question, List<String> things, List<String> values) {}

    private static final List<String> NAMES = words("Anna,Peter,Maria,Thomas,Laura,Martin,Sophie,Daniel,Julia,Simon,"
            + "Clara,David,Nina,Paul,Eva,Robert,Lisa,Mark,Ruth,Frank");

    static final List<Kind> KINDS = List.of(
            new Kind(
                    "the code of the %s is %s",
                    "What is the code of the %s?",
                    words("garage,front gate,safe,bicycle lock,mailbox,storage room,parking lot,locker,burglar alarm"
                            + ",wireless network"),
                    numbers(1013, 9973, 97)),
            new Kind(
                    "the birthday of %s is on %s",
                    "On which day is the birthday of %s?", NAMES.subList(0, 10), dates()),
            new Kind(
                    "the %s is in the %s",
                    "Where is the %s?",
                    words("passport,spare key,torch,first aid kit,camera,sewing kit,toolbox,charger,old atlas,tent"),
                    words("top drawer,attic,blue box,car boot,bathroom cabinet,desk,wardrobe,shed,kitchen shelf"
                            + ",brown suitcase")),
            new Kind(
                    "the %s cost %s euros",
                    "How much did the %s cost?",
                    words("sofa,dishwasher,trampoline,lawnmower,fridge,tablet,oven,bookcase,treadmill,armchair"),
                    numbers(19, 990, 13)),
            new Kind(
                    "the %s begins at %s",
                    "At what time does the %s begin?",
                    words("yoga class,parents' evening,choir practice,cycling tour,board meeting,chess club,auction"
                            + ",sailing lesson,book group,flower show"),
                    times()),
            new Kind(
                    "%s drives a %s",
                    "Which car does %s drive?",
                    NAMES.subList(10, 20),
                    words("Volvo,Fiat,Toyota,Renault,Skoda,Honda,Mazda,Opel,Peugeot,Subaru,Nissan,Hyundai")),
            new Kind(
                    "%s plays the %s",
                    "Which instrument does %s play?",
                    NAMES.subList(5, 15),
                    words("cello,flute,harp,oboe,clarinet,saxophone,banjo,accordion,bassoon,tuba,viola,xylophone")),
            new Kind(
                    "%s has allowed the colour %s and no other",
                    "Which colour has %s allowed?",
                    Stream.concat(NAMES.subList(15, 20).stream(), NAMES.subList(0, 5).stream())
                            .toList(),
                    words("red,blue,green,white,black,yellow,grey,brown,pink,turquoise,beige,crimson")),
            new Kind(
                    "the train to %s leaves from platform %s",
                    "From which platform does the train to %s leave?",
                    words("Porto,Bergen,Turin,Krakow,Malmo,Ghent,Bilbao,Leipzig,Basel,Graz"),
                    numbers(2, 40, 1)),
            new Kind(
                    "the password of the %s is %s",
                    "What is the password of the %s?",
                    words("laptop,bank account,photo album,newsletter,router,cinema club,ticket office,backup,web shop"
                            + ",old forum"),
                    codes()),
            new Kind(
                    "the %s is due on %s",
                    "On which day is the %s due?",
                    words("rent,tax return,essay,insurance,loan,invoice,application,membership,road toll,licence fee"),
                    words("Monday the 3rd,Tuesday the 11th,Wednesday the 19th,Thursday the 27th,Friday the 6th"
                            + ",Saturday the 14th,Sunday the 22nd,Monday the 30th,Tuesday the 8th"
                            + ",Wednesday the 16th,Thursday the 24th,Friday the 2nd")),
            new Kind(
                    "the size of the %s is %s",
                    "What is the size of the %s?",
                    words("shirt,ski boots,picture frame,mattress,dustbin,aquarium,rug,bin bags,cycle tyre,raincoat"),
                    numbers(31, 270, 7)),
            new Kind(
                    "the %s was invented by %s",
                    "Who invented the %s?",
                    words("folding desk,paper tent,quiet drill,glass oar,solar kite,wooden zip,round ruler,tin whisk"
                            + ",felt hinge,steam lamp"),
                    words("Farrow,Ellery,Quint,Novak,Ibsen,Okafor,Lindqvist,Marchetti,Duval,Haruki,Petrov,Santos")),
            new Kind(
                    "%s wants %s for the anniversary",
                    "What does %s want for the anniversary?",
                    NAMES.subList(3, 13),
                    words("a kite,a globe,two tickets,a vase,warm gloves,a telescope,new skates,a puzzle,a scarf"
                            + ",a teapot,binoculars,a hammock")));

    static final List<String> LEADS = List.of(
            "Before I forget, ",
            "Remember that ",
            "You should know that ",
            "Note that ",
            "",
            "For later: ",
            "Please keep this: ",
            "One more thing, ");

    static final List<String> ANSWERS = List.of(
            "I have written down that %s.",
            "Understood, %s.", "All right: %s.", "So %s. Fine.", "I have that now: %s.", "Okay, %s. What else?");

    /** What is said to a long text that is sent. */
    static final String SENT = "Please read this text with care, since I have questions about it.\n\n";

    private static List<String> words(String all) {
        return List.of(all.split(","));
    }

    private static List<String> numbers(int from, int to, int apart) {
        return IntStream.iterate(from, n -> n <= to, n -> n + apart)
                .mapToObj(Integer::toString)
                .toList();
    }

    private static List<String> dates() {
        List<String> months = words("January,February,March,April,June,July,August,September,October");
        List<String> all = new ArrayList<>();
        for (String month : months) {
            for (int day = 1; day <= 28; day++) {
                all.add(day + " " + month);
            }
        }
        return all;
    }

    private static List<String> times() {
        List<String> all = new ArrayList<>();
        for (int minutes = 8 * 60; minutes < 22 * 60; minutes += 5) {
            all.add(String.format(Locale.ROOT, "%d:%02d", minutes / 60, minutes % 60));
        }
        return all;
    }

    /** Words that do not exist, with a number. */
    private static List<String> codes() {
        List<String> all = new ArrayList<>();
        for (String first : words("bra,che,dol,fri,gan,jo,kla,mur,ne,pla,quo,sti")) {
            for (String last : words("bek,dus,fin,gor,lom,nar,pix,tev")) {
                all.add(first + last + (11 + all.size() * 37 % 89));
            }
        }
        return all;
    }
}
