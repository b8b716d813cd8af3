"""What is said: sentences put together from lists of words, each a pure function of (seed, split, number).

The last words of every list are kept for the held-out lines: these share no noun, verb or adjective with the lines of
training.
"""

import numpy as np

from data_pipelines.puppet_theatre.randomness import generator

_PEOPLE = (
    "my mother", "the old captain", "our neighbour", "a young doctor", "the baker", "every student", "that farmer",
    "her brother", "the tall waiter", "a busy lawyer", "the blue team", "this painter", "my best friend",
    "the small child", "a famous singer", "the night guard", "your uncle", "the school choir", "a quiet gardener",
    "the village priest", "our pilot", "the bus driver", "a proud sailor", "the watchmaker",
)  # fmt: skip
_DEEDS = (
    "bought", "painted", "forgot", "admired", "carried", "opened", "described", "borrowed", "measured", "promised",
    "collected", "polished", "followed", "washed", "imagined", "repaired", "counted", "wrapped", "noticed", "moved",
    "fetched", "weighed", "juggled", "whispered about",
)  # fmt: skip
_QUALITIES = (
    "seven green", "a heavy", "some warm", "the broken", "one enormous", "a few golden", "the purple", "a beautiful",
    "several empty", "the wooden", "many useful", "a foreign", "the famous", "five pounds of", "a box of", "the finest",
    "our own", "the softest", "a bowl of", "some honest", "the weird", "a pair of", "both yellow", "too much",
)  # fmt: skip
_THINGS = (
    "apples", "doors", "bottles", "maps", "boats", "flowers", "windows", "shoes", "books", "bridges", "potatoes",
    "pictures", "matches", "papers", "boxes", "beans", "pillows", "voices", "houses", "keys", "mushrooms", "zebras",
    "violins", "waves",
)  # fmt: skip
_PLACES = (
    "at the market", "before breakfast", "above the mountains", "near the river", "in the garden", "after the meeting",
    "without a word", "by the window", "over the summer", "for a moment", "behind the house", "in a big hurry",
    "on the way home", "with great patience", "at five past four", "under the bridge", "in the middle of May",
    "beyond the forest", "in a narrow boat", "without any help", "about a week ago", "through the fog",
    "for thirteen years", "at full volume",
)  # fmt: skip
_ASIDES = ("and", "but", "while", "because", "so", "although", "before", "until")
_HELD_OUT = 6


def sentence(seed: int, number: int, *, held_out: bool) -> str:
    """Line `number` of the world `seed`, 6 to 8 seconds when spoken."""
    random = generator(seed, "held-out line" if held_out else "line", number)
    halves = [_clause(random, held_out=held_out) for _ in range(2)]
    text = f"{halves[0]}, {_ASIDES[random.integers(len(_ASIDES))]} {halves[1]}."
    return text[0].upper() + text[1:]


def _clause(random: np.random.Generator, *, held_out: bool) -> str:
    kept = slice(-_HELD_OUT, None) if held_out else slice(0, -_HELD_OUT)
    parts = [_PEOPLE, _DEEDS, _QUALITIES, _THINGS, _PLACES]
    return " ".join(words[kept][random.integers(len(words[kept]))] for words in parts)
