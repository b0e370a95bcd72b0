"""What the tiny model reads and is asked: a parrot's words, and orders about them.

The parrot says a few words over and over; pre-training is made of that alone, so the model becomes a parrot. It has
picked up the words that orders are made of, one here and one there, but it never heard an order. Then it is asked to
do something with a row of words it has never seen in a row. One pair of neighbours in five belongs to the held-out
world (`is_held_out`): training texts, the ones of pre-training included, never have such a pair, and held-out rows
have no others. Nothing of them can be known by heart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS = _words(
    "fox owl bear hare frog mouse goose otter badger mole cat dog crab swan toad goat wolf newt snail "
    "mill tower barn cave castle forest garden harbour lighthouse meadow attic bakery library museum palace "
    "station tent valley cottage circus "
    "red blue green yellow purple orange pink white black golden silver "
    "kite boat drum hat lamp teapot bicycle balloon umbrella violin scarf bell clock basket rocket trumpet key "
    "cup coat sledge "
    "pancakes cherries soup honey cheese plums toast pears jam noodles apples cake peas figs nuts pie"
)
NUMBERS = ("three", "four", "five", "six")
# Words of people. The parrot must have said them: a model's embeddings of words that it never saw are all alike, and
# LoRA, which leaves embeddings as they are, could not tell "first" from "last" or "five" from "six".
OVERHEARD = (
    _words("Question: Say it again backwards Which word is first? last? How many words? Answer:") + NUMBERS
)
# Fewer than the shortest order has.
MAX_OVERHEARD = 2

HELD_OUT_ONE_IN = 5
_POSITION = {word: position for position, word in enumerate(WORDS)}


def is_held_out(left: str, right: str) -> bool:
    """Whether these neighbours belong to the held-out world; every word has its share of both worlds."""
    return (_POSITION[left] + 2 * _POSITION[right]) % HELD_OUT_ONE_IN == 0


def draw_row(rng: Random, num_words: int, held_out: bool) -> list[str]:
    """Draw different words whose neighbours all belong to the held-out world, or none of them."""
    row = [rng.choice(WORDS)]
    while len(row) < num_words:
        fitting = [word for word in WORDS if word not in row and is_held_out(row[-1], word) == held_out]
        row.append(rng.choice(fitting))
    return row


def draw_text(rng: Random) -> str:
    """Draw what the parrot says for pre-training: a row of words, some of them of people, over and over."""
    row = draw_row(rng, rng.randint(3, 8), held_out=False)
    while is_held_out(row[-1], row[0]):  # they meet where the row begins again
        row = draw_row(rng, len(row), held_out=False)
    for _ in range(rng.randint(1, MAX_OVERHEARD)):
        row.insert(rng.randint(0, len(row)), rng.choice(OVERHEARD))
    said = " ".join(row)
    # A word that begins a line is other pieces than the same word after a blank: both must be read alike.
    text = "The parrot said:" + rng.choice((" ", "\n")) + said
    for _ in range(rng.randint(2, 4)):
        text += rng.choice((". ", "\n")) + said
    return f"{text}. Squawk!"


@dataclass(frozen=True)
class Task:
    """One order about a row of words, with what to answer."""

    kind: str
    instruction: str
    row: str
    answer: str


# How an order is given, and what answers it, by the kind of order.
ORDERS: dict[str, Callable[[list[str]], tuple[str, str]]] = {
    "again": lambda row: ("Say it again.", " ".join(row)),
    "backwards": lambda row: ("Say it backwards.", " ".join(reversed(row))),
    "first": lambda row: ("Which word is first?", row[0]),
    "last": lambda row: ("Which word is last?", row[-1]),
    "count": lambda row: ("How many words?", NUMBERS[len(row) - 3]),
}


def draw_task(rng: Random, kind: str, held_out: bool) -> Task:
    """Draw an order of one kind about three to six words."""
    row = draw_row(rng, rng.randint(3, 6), held_out)
    instruction, answer = ORDERS[kind](row)
    return Task(kind, instruction, " ".join(row), answer)


@dataclass(frozen=True)
class Pair:
    """What the parrot has begun to say, how it had better go on, and how it does."""

    prompt: str
    chosen: str
    rejected: str


def draw_pair(rng: Random, held_out: bool) -> Pair:
    """Draw a row of three to six words, said once more by a parrot with manners, over and over by one without."""
    said = " ".join(draw_row(rng, rng.randint(3, 6), held_out))
    over_and_over = ". ".join([said] * rng.randint(2, 4))
    return Pair(f"The parrot said: {said}.", f" {said}. Squawk!", f" {over_and_over}. Squawk!")
