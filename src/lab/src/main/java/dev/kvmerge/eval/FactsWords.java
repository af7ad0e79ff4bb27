package dev.kvmerge.eval;

import java.util.List;

/** The words that conversations with facts are made of. No word of a fact occurs in the talk around it. */
final class FactsWords {
    private FactsWords() {}

    /**
     * One kind of fact.
     *
     * @param statement with {@code %s} for the person and then the value
     * @param question with {@code %s} for the person
     * @param lead how the answer begins, with {@code %s} for the person; the value comes next
     * @param values more than are asked for: those that a tokenizer cannot tell apart by their first token are left out
     */
    record Kind(String name, String statement, String question, String lead, List<String> values) {}

    static final List<String> PEOPLE = List.of(
            "sister", "brother", "uncle", "aunt", "cousin", "neighbour", "boss", "dentist", "landlord", "grandmother");

    static final List<Kind> KINDS = List.of(
            new Kind(
                    "pet",
                    "my %s's dog is called %s",
                    "What is my %s's dog called?",
                    "Your %s's dog is called",
                    words("Biscuit Pepper Domino Ginger Shadow Rocket Bandit Cookie Tiger Buddy Lucky Sunny Misty Rusty"
                            + " Smokey Duke Prince King Angel Baby Bear Wolf Fox Hunter Ranger Scout Ace Jack Max "
                            + "Charlie"
                            + " Rex Toby Bruno Oscar Felix Leo Milo Luna Bella Daisy Ruby Coco Molly Sam Ben Harry "
                            + "Romeo"
                            + " Apollo Zeus Thor Merlin Storm Snow Pearl")),
            new Kind(
                    "town",
                    "my %s lives in %s",
                    "Where does my %s live?",
                    "Your %s lives in",
                    words("Oslo Cairo Lima Dublin Madrid Vienna Prague Warsaw Lisbon Athens Berlin Hamburg Munich Paris"
                            + " Lyon Rome Milan Naples Boston Chicago Dallas Houston Denver Seattle Toronto Montreal"
                            + " Sydney Melbourne Tokyo Seoul Beijing Mumbai Delhi Moscow Istanbul Tehran Baghdad "
                            + "Nairobi"
                            + " Lagos Havana Miami Glasgow Manchester Liverpool Bristol Oxford Cambridge Geneva Zurich"
                            + " Brussels")),
            new Kind(
                    "work",
                    "my %s works as a %s",
                    "What does my %s work as?",
                    "Your %s works as a",
                    words("plumber nurse baker pilot farmer sailor soldier teacher lawyer doctor judge banker barber"
                            + " butcher carpenter cleaner clerk coach cook dancer designer diver driver firefighter"
                            + " gardener guard guide hairdresser jeweller journalist librarian mechanic miner model"
                            + " musician painter pharmacist photographer physicist poet policeman porter postman potter"
                            + " priest professor programmer psychologist receptionist reporter sculptor"
                            + " secretary singer surgeon tailor translator vet waiter welder writer")),
            new Kind(
                    "food",
                    "my %s cannot eat %s",
                    "Which food can my %s not eat?",
                    "Your %s cannot eat",
                    words("peanuts mustard garlic onions tomatoes potatoes carrots celery spinach cabbage "
                            + "mushrooms beans"
                            + " lentils rice wheat corn oats cheese butter milk cream eggs chicken beef pork "
                            + "lamb fish"
                            + " shrimp oysters salmon tuna chocolate honey sugar cinnamon vanilla apples "
                            + "bananas oranges"
                            + " lemons grapes cherries strawberries peaches melons pineapple coconut almonds "
                            + "walnuts"
                            + " olives")));

    /** Words that answers to questions are to begin with. */
    static final List<String> OPENERS = words("Marble Copper Velvet Anchor Lantern Meadow Harbor Crystal Thunder Silver"
            + " Orange Purple Saddle Bridge Castle Garden River Mountain Forest Island Mirror Pencil Ladder "
            + "Hammer Basket"
            + " Blanket Candle Button Pocket Helmet Barrel Needle Ribbon Feather Dragon Falcon Eagle Walrus "
            + "Panda Rabbit"
            + " Turtle Dolphin Spider Planet Comet Galaxy Signal Engine Magnet Violin Trumpet Guitar Piano "
            + "Carpet Curtain");

    static final String SYSTEM = "You are a friendly assistant who listens well and remembers what the user says.";

    /** The rule, with {@code %s} for the word. */
    static final String RULE = " Whenever the user asks a question, begin your answer with the word \"%s\".";

    /** Questions that anyone can answer: does the answer begin with the word? */
    static final List<String> CHECKS = List.of(
            "How many days does a week have?",
            "What colour is the sky on a clear day?",
            "How many legs does a spider have?",
            "What do bees make?",
            "In which direction does the sun rise?",
            "What is frozen water called?",
            "How many months does a year have?",
            "What is the opposite of hot?");

    static final List<String> LEADS = List.of(
            "By the way, ",
            "I think I never said that ",
            "You may like to know that ",
            "Oh, and ",
            "Just so you" + " know, ",
            "What I wanted to say is that ",
            "It may be of use one day that ",
            "As it happens, ");

    /** What the assistant says to a fact, with {@code %s} for its own words of it. */
    static final List<String> THANKS = List.of(
            "Thanks for telling me. %s, and I will remember that.",
            "Good to know. %s.", "I will keep that in mind: %s.", "Noted. %s.", "I see. %s, then.");

    static final List<String> REPLIES = List.of(
            "That sounds like a {full|quiet|long|good} day. {I hope the evening is calm.|A bit of rest will do you "
                    + "good.}",
            "I can see why that {matters|stays with you|makes you smile}.",
            "Small things like that {make|shape|fill} a week. {Tell me more if you like.|I am glad you said it.}",
            "It is good that you {took the time|kept going|tried it anyway}.",
            "That makes sense. {Slow and steady is fine.|One step at a time.|There is no hurry.}",
            "Sounds {reasonable|lovely|tiring} to me. {Let us see how it goes.|I hope it works out.}");

    /** Talk with {a|b} for either. */
    static final List<String> TALK = List.of(
            "The {bus|tram|train} was {late|early|full} again this {morning|afternoon}, so I {walked|waited|read a"
                    + " magazine} for a while.",
            "It has been {raining|windy|foggy|warm} since {Monday|Tuesday|the weekend}, and the street is "
                    + "{wet|empty|loud}.",
            "I {cleaned|sorted|painted} the {kitchen|cellar|hallway} yesterday and found an old "
                    + "{clock|umbrella|letter}.",
            "The {heating|washing machine|lift} makes a {strange|low|rattling} noise, but nobody seems to {mind|hear "
                    + "it}.",
            "We {watched|skipped|talked about} the {game|film|concert} last night and went to bed {late|early}.",
            "I am trying to {sleep more|walk more|spend less} this {month|week|winter}, with {some|little} success.",
            "The {new|old} shop on the corner sells {lamps|shoes|paper|plants} now, and the prices are {fair|high}.",
            "My {phone|bicycle|computer} needs a repair, which will take {two|three|four} days.",
            "There was a {long|short} queue at the {post office|bank|counter}, but everyone was "
                    + "{patient|cheerful|tired}.",
            "The {park|square|path by the canal} is {quiet|busy} at this time of year, and the "
                    + "{leaves|benches|lamps} are"
                    + " {wet|new|gone}.",
            "I {finished|started|put away} a {thick|thin|funny} book about {railways|clouds|maps|chess} on "
                    + "{Sunday|Friday}.",
            "Work was {calm|hectic|slow} today, with {two|three|too many} meetings before {noon|lunch}.",
            "The neighbourhood plans a {fair|market|clean-up} in {spring|summer|autumn}, and I may {help|go|watch}.",
            "I still have to {answer|write|print} a few {letters|forms|messages} before the {weekend|evening}.",
            "The {moon|sunset|fog} looked {strange|beautiful|huge} from the {balcony|hill|window} last night.",
            "I {forgot|remembered|almost missed} the {appointment|deadline|alarm}, which {happens|is rare} these days.",
            "The radio played {old|quiet|loud} songs all {morning|day}, and I {hummed along|turned it down|did not "
                    + "mind}.",
            "They {closed|opened|widened} the {road|tunnel|footpath} near the {station|school|stadium} for {a "
                    + "week|repairs}.",
            "I {bought|returned|borrowed} a {jacket|chair|suitcase} that is a little too {big|small|heavy}.",
            "The {stairs|walls|shelves} could use {new paint|a good scrub|some care}, and I have the {time|tools} "
                    + "for it.",
            "It is {odd|nice|hard} how {quickly|slowly} the {year|season|afternoon} goes by.",
            "I {learned|forgot|practised} a few words of {Latin|Swedish|Welsh} with a {tape|course|friend}.",
            "The {printer|elevator|doorbell} works again after {someone|the caretaker} {kicked|fixed|cleaned} it.",
            "On the way home I {counted|noticed|met} {seven|nine|a dozen} {cyclists|tourists|joggers} in the "
                    + "{rain|dark}.",
            "The {museum|library|pool} opens {late|early} on {Thursdays|holidays}, which {suits|surprises} me.",
            "I would rather {stay in|go out|take a nap} tonight, since the {week|day} was {long|dull|loud}.");

    private static List<String> words(String all) {
        return List.of(all.split(" "));
    }
}
