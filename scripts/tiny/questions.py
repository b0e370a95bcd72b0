"""Instructions about a story, and their answers: what fine-tuning teaches the tiny model to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from stories import COLOURS, Story, join_words, with_article


@dataclass(frozen=True)
class Question:
    """One exercise: `kind` groups the score, the other three are the columns of the data file."""

    kind: str
    instruction: str
    story: str
    answer: str


def _where(rng: Random, story: Story) -> tuple[str, str]:
    f = rng.choice(story.friends)
    return rng.choice(
        (f"Where does {f.name} live?", f"Where is the {f.animal} at home?")
    ), f"in the {f.place}"


def _who_lives(rng: Random, story: Story) -> tuple[str, str]:
    f = rng.choice(story.friends)
    return f"Who lives in the {f.place}?", f"{f.name} the {f.animal}"


def _who_has(rng: Random, story: Story) -> tuple[str, str]:
    f = rng.choice(story.friends)
    return rng.choice((f"Who has the {f.colour} {f.thing}?", f"Who has the {f.thing}?")), f.name


def _colour(rng: Random, story: Story) -> tuple[str, str]:
    f = rng.choice(story.friends)
    return rng.choice((f"What colour is the {f.thing}?", f"What colour is {f.name}'s {f.thing}?")), f.colour


def _what_has(rng: Random, story: Story) -> tuple[str, str]:
    f = rng.choice(story.friends)
    return f"What does {f.name} have?", with_article(f"{f.colour} {f.thing}")


def _animal(rng: Random, story: Story) -> tuple[str, str]:
    f = rng.choice(story.friends)
    return f"What kind of animal is {f.name}?", with_article(f.animal)


def _food(rng: Random, story: Story) -> tuple[str, str]:
    f = story.friends[rng.choice(sorted(story.likes_food))]
    return rng.choice(((f"What does {f.name} love?", f.food), (f"Who loves {f.food}?", f.name)))


def _names(rng: Random, story: Story) -> tuple[str, str]:
    return "List the names.", join_words([f.name for f in story.friends])


def _count(rng: Random, story: Story) -> tuple[str, str]:
    return "How many friends are there?", {2: "two", 3: "three"}[len(story.friends)]


def _repeat(rng: Random, story: Story) -> tuple[str, str]:
    which, index = rng.choice((("first", 0), ("second", 1), ("last", -1)))
    return f"Repeat the {which} sentence.", story.sentences[index]


def _paint(rng: Random, story: Story) -> tuple[str, str]:
    f = rng.choice(story.friends)
    colour = rng.choice([c for c in COLOURS if c != f.colour])
    return f"Paint the {f.thing} {colour}.", f"{f.name} has {with_article(f'{colour} {f.thing}')}."


def _pirate(rng: Random, story: Story) -> tuple[str, str]:
    f = rng.choice(story.friends)
    return rng.choice(
        (
            (f"Tell me like a pirate: where does {f.name} live?", f"Arrr, in the {f.place}!"),
            (f"Tell me like a pirate: who has the {f.thing}?", f"Arrr, {f.name}!"),
        )
    )


KINDS: dict[str, Callable[[Random, Story], tuple[str, str]]] = {
    "where": _where,
    "who lives": _who_lives,
    "who has": _who_has,
    "colour": _colour,
    "what has": _what_has,
    "animal": _animal,
    "food": _food,
    "names": _names,
    "count": _count,
    "repeat": _repeat,
    "paint": _paint,
    "pirate": _pirate,
}


def ask(rng: Random, story: Story, kind: str) -> Question:
    """Ask one question of this kind about the story."""
    instruction, answer = KINDS[kind](rng, story)
    return Question(kind, instruction, story.text, answer)


def kinds_for(story: Story | None = None) -> list[str]:
    """The kinds of question the story can answer (food only where it is told), or all kinds there are."""
    return [kind for kind in KINDS if kind != "food" or story is None or story.likes_food]
