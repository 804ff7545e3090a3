"""Short lists of English words by class, written for this package: what edits of captions replace and exchange."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COLORS = _words(
    "red orange yellow green cyan blue purple black white gray grey brown pink violet golden silver turquoise beige"
)
SAME_COLORS = (("gray", "grey"), ("purple", "violet"), ("cyan", "turquoise"))
"""Colors that are not false of each other."""

ADJECTIVES = tuple(
    map(
        _words,
        (
            "small large",
            "little big",
            "tiny huge",
            "short tall",
            "young old",
            "long short",
            "wide narrow",
            "open closed",
            "empty full",
            "wet dry",
            "hot cold",
            "happy sad",
            "clean dirty",
            "bright dark",
            "light dark",
            "wooden metal plastic glass stone",
            "striped spotted plain",
            "smooth rough",
            "front back",
            "upper lower",
        ),
    )
)
"""Adjectives that exclude each other; a word may be in several groups."""

NUMBERS = _words("two three four five six seven eight nine ten")
"""Number words that keep the noun in the plural."""

_NOUNS = tuple(
    map(
        _words,
        (
            "dog cat horse cow sheep pig goat elephant bear lion tiger monkey rabbit fox squirrel bird duck chicken "
            "owl penguin eagle snake frog turtle fish shark whale dolphin butterfly bee spider zebra giraffe camel",
            "car truck bus train bicycle motorcycle airplane helicopter boat ship tractor van taxi scooter rocket",
            "apple banana lemon pear cherry strawberry grape pineapple tomato carrot potato onion mushroom",
            "pizza sandwich burger cake cookie donut hamburger bread cheese salad soup",
            "chair table bed sofa desk bench lamp shelf mirror",
            "shirt hat shoe dress jacket coat glove sock scarf tie skirt boot",
            "cup bottle glass bowl plate fork knife spoon pan pot",
            "house church castle tower bridge tent barn",
            "tree flower mountain river lake beach desert forest island",
            "circle triangle square diamond star rectangle oval hexagon heart",
            "guitar piano violin drum trumpet flute",
            "hammer saw screwdriver wrench axe shovel",
            "phone computer camera television keyboard clock radio",
            "sun moon cloud rainbow snowflake",
            "man woman boy girl baby",
            "football basketball baseball volleyball",
            "book newspaper letter map",
            "kitchen bathroom bedroom office garden",
            "king queen",
        ),
    )
)
"""Nouns of one kind, of which one is not another."""

_IRREGULAR = {
    "man": "men", "woman": "women", "sheep": "", "fish": "", "bread": "", "cheese": "", "baby": "babies",
    "strawberry": "strawberries", "cherry": "cherries", "shelf": "shelves", "knife": "knives", "tomato": "tomatoes",
    "potato": "potatoes", "bus": "buses", "bench": "benches", "fox": "foxes", "church": "churches", "beach": "beaches",
    "sandwich": "sandwiches", "butterfly": "butterflies", "glass": "glasses", "dress": "dresses", "sun": "", "moon": "",
    "football": "", "basketball": "", "baseball": "", "volleyball": "",
}  # fmt: skip


def plural(noun: str) -> str:
    """Return the plural of a noun of the lists; empty: it is not used in the plural."""
    return _IRREGULAR.get(noun, f"{noun}s")


NOUNS = tuple(chain(_NOUNS, (tuple(filter(None, map(plural, group))) for group in _NOUNS)))
"""Groups of nouns in the singular, then in the plural."""

INVERSES: Mapping[str, str] = {
    one: other
    for pair in (
        ("left of", "right of"),
        ("above", "below"),
        ("over", "under"),
        ("in front of", "behind"),
        ("inside", "outside"),
        ("before", "after"),
        ("larger than", "smaller than"),
        ("bigger than", "smaller than"),
        ("taller than", "shorter than"),
        ("older than", "younger than"),
        ("on top of", "underneath"),
    )
    for one, other in (pair, pair[::-1])
}
"""Relations with their opposites: A above B is false if B is above A."""

CONVERSE = frozenset(INVERSES) - {"inside", "outside"}
"""Relations whose opposite says the same from the other end: B below A is A above B."""

SYMMETRIC = ("next to", "beside", "near", "close to", "alongside", "and")
"""Relations that say the same from either end."""

DIRECTED = ("on", "in", "holding", "riding", "eating", "chasing", "wearing", "carrying", "pulling", "pushing")
"""Relations without a known opposite that are usually false from the other end."""

SYNONYMS: Mapping[str, str] = {
    one: other
    for pair in (
        ("large", "big"),
        ("small", "little"),
        ("below", "beneath"),
        ("beside", "next to"),
        ("sofa", "couch"),
        ("bicycle", "bike"),
        ("airplane", "plane"),
        ("child", "kid"),
        ("children", "kids"),
        ("television", "tv"),
        ("photo", "picture"),
        ("street", "road"),
        ("gray", "grey"),
        ("motorcycle", "motorbike"),
        ("rabbit", "bunny"),
    )
    for one, other in (pair, pair[::-1])
}
"""Words and phrases that replace each other without a change of meaning."""

BOUNDARIES = frozenset(
    _words(
        "there is are was were be and or but with without of in on at by to from for into onto under over above below "
        "behind beside near inside outside before after while that which who not than as it this these those"
    )
)
"""Words that a noun phrase does not contain."""
