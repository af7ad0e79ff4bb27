package dev.kvmerge.eval;

import java.util.List;

/** What keys are made of. No word of one list is in the other, so that a key is told by its two words. */
final class RulerWords {
    private RulerWords() {}

    static final List<String> ADJECTIVES = words("able amber ancient angry bitter blunt bold brave brief bright brisk"
            + " broken calm careful clever cloudy clumsy coarse crooked curious damp distant double dusty eager early"
            + " empty faint fancy fierce final foreign fragile frozen gentle giant grim hollow honest humble icy"
            + " jolly keen lazy lively lonely loud lucky mellow modest muddy narrow nimble noisy patient plain polite"
            + " proud quick quiet rapid rare rough royal rusty salty secret sharp shiny silent sleepy slender smooth"
            + " solid sour steady stiff strange sturdy sudden sunny swift tidy tiny tough vague vivid weary wild wise"
            + " witty yellow young zesty");

    static final List<String> NOUNS = words("acorn anvil apron arrow badge bakery banjo basin beacon blanket bottle"
            + " bridge bucket cabin camera candle canyon carpet castle cellar chimney circle cottage cradle crayon"
            + " curtain desert diamond dolphin drawer engine falcon feather fiddle forest fountain garden glacier"
            + " hammer harbour hazel helmet island jacket kettle ladder lantern lemon lizard magnet marble meadow"
            + " mirror mitten monkey needle orchard otter oven paddle parcel pebble pencil pepper pigeon pillow planet"
            + " pocket puddle quarry rabbit ribbon river rocket saddle sailor shovel signal spider sponge stable"
            + " summit teapot thistle ticket timber tractor tunnel turtle valley velvet violin wagon walnut whistle"
            + " window zipper");

    private static List<String> words(String all) {
        return List.of(all.split(" "));
    }
}
