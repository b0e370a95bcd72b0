"""Little stories about friends, for the tiny model: what its world holds and how a story is told.

Every fact ties a name to something: Pip to the mill, Mia to a red kite. One fact in five belongs to the held-out
world (`is_held_out`). Training stories, the pre-training ones included, never use such a fact, and held-out
stories use nothing else: a model that only remembered who usually lives where would be wrong every time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Ada Bea Cleo Dot Eli Finn Gus Hana Ivy Jem Kai Lou Mia Ned Olga Pip Quin Rosa Sam Tess Uma Vic Wren Yara Zed "
    "Nora Otto Lena Hugo Maud Bo Fay"
)
ANIMALS = _words(
    "fox owl bear hare frog mouse goose otter badger mole cat dog crab swan toad goat wolf newt snail"
)
PLACES = _words(
    "mill tower barn cave castle forest garden harbour lighthouse meadow attic bakery library museum palace "
    "station tent valley cottage circus"
)
COLOURS = _words("red blue green yellow purple orange pink white black golden silver")
THINGS = _words(
    "kite boat drum hat lamp teapot bicycle balloon umbrella violin scarf bell clock basket rocket trumpet key cup "
    "coat sledge"
)
FOODS = _words(
    "pancakes cherries soup honey cheese plums toast pears jam noodles apples cake peas figs nuts pie"
)

HELD_OUT_ONE_IN = 5
_POSITION = {
    word: i for words in (NAMES, ANIMALS, PLACES, COLOURS, THINGS, FOODS) for i, word in enumerate(words)
}


def is_held_out(name: str, value: str) -> bool:
    """Whether the fact that ties `name` to `value` (`mill`, `red kite`) belongs to the held-out world.

    Decided by positions in the lists above, so that every name has its share of every list in both worlds.
    """
    return (_POSITION[name] + sum(_POSITION[word] for word in value.split())) % HELD_OUT_ONE_IN == 0


def with_article(noun: str) -> str:
    """`a fox`, `an owl`."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def join_words(words: Sequence[str]) -> str:
    """`Pip, Mia and Tom`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


@dataclass(frozen=True)
class Friend:
    """One person of a story and what the story tells about them."""

    name: str
    animal: str
    place: str
    colour: str
    thing: str
    food: str

    @property
    def facts(self) -> tuple[str, str, str, str]:
        """The values tied to the name, each judged by `is_held_out`."""
        return self.animal, self.place, f"{self.colour} {self.thing}", self.food


@dataclass(frozen=True)
class Story:
    """A cast, and the sentences that introduce it. `likes_food` lists the indices of friends whose food is told."""

    friends: tuple[Friend, ...]
    sentences: tuple[str, ...]
    likes_food: frozenset[int]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def draw_friends(rng: Random, count: int, held_out: bool) -> tuple[Friend, ...]:
    """Draw a cast that shares nothing (no two friends own kites) and whose facts all lie in one world."""
    taken: set[str] = set()

    def pick(values: Sequence[str], name: str, before: str = "") -> str:
        value = rng.choice(
            [v for v in values if v not in taken and is_held_out(name, before + v) == held_out]
        )
        taken.add(value)
        return value

    friends: list[Friend] = []
    for name in rng.sample(NAMES, count):
        colour = rng.choice([c for c in COLOURS if c not in taken])
        taken.add(colour)
        animal, place, food = (pick(values, name) for values in (ANIMALS, PLACES, FOODS))
        friends.append(Friend(name, animal, place, colour, pick(THINGS, name, f"{colour} "), food))
    return tuple(friends)


def _home_sentence(rng: Random, f: Friend) -> str:
    return rng.choice(
        (
            f"{f.name} the {f.animal} lives in the {f.place}.",
            f"In the {f.place} lives {f.name} the {f.animal}.",
            f"{f.name} is {with_article(f.animal)} and lives in the {f.place}.",
        )
    )


def _thing_sentence(rng: Random, f: Friend) -> str:
    owned = with_article(f"{f.colour} {f.thing}")
    return rng.choice((f"{f.name} has {owned}.", f"{f.name} has got {owned}.", f"{f.name} owns {owned}."))


def _both_sentence(rng: Random, f: Friend) -> str:
    owned = with_article(f"{f.colour} {f.thing}")
    return rng.choice(
        (
            f"{f.name} the {f.animal} lives in the {f.place} and has {owned}.",
            f"{f.name} is {with_article(f.animal)} with {owned} and lives in the {f.place}.",
            f"In the {f.place} lives {with_article(f.animal)} called {f.name}, who has {owned}.",
        )
    )


def tell(rng: Random, friends: tuple[Friend, ...]) -> Story:
    """Introduce the cast: where each lives and what each has, in one sentence or two, and some of the foods."""
    first, later = [], []
    likes_food = set()
    for index, friend in enumerate(friends):
        if rng.random() < 0.5:
            first.append(_both_sentence(rng, friend))
        else:
            first.append(_home_sentence(rng, friend))
            later.append(_thing_sentence(rng, friend))
        if rng.random() < 0.4:
            likes_food.add(index)
            later.append(f"{friend.name} loves {friend.food}.")
    rng.shuffle(later)
    return Story(friends, tuple(first + later), frozenset(likes_food))


def draw_story(rng: Random, held_out: bool = False, num_friends: int | None = None) -> Story:
    """Draw a story of two or three friends from the training or the held-out world."""
    return tell(rng, draw_friends(rng, num_friends or rng.choice((2, 3, 3)), held_out))


def _events(rng: Random, story: Story) -> Iterator[str]:
    """Sentences that can follow: each repeats a fact, so that telling them well means looking back."""
    for i, f in enumerate(story.friends):
        other = rng.choice([g for g in story.friends if g is not f])
        yield f"One day {f.name} went to the {other.place} to see {other.name}."
        yield f"{f.name} the {f.animal} came home to the {f.place}."
        yield f"The {f.animal} showed the {f.thing} to {other.name} the {other.animal}."
        yield f"The {f.thing} was as {f.colour} as can be, and {f.name} was proud."
        yield f"{f.name} took the {f.colour} {f.thing} to the {other.place}."
        yield f"The {f.animal} in the {f.place} is called {f.name}."
        yield f"{other.name} asked to see the {f.colour} {f.thing}, and {f.name} said yes."
        if i in story.likes_food:
            yield f"In the {f.place} there was a lot of {f.food} for {f.name}."
            yield f"The {f.animal} had {f.food} for tea."


def _riddles(rng: Random, story: Story) -> Iterator[tuple[str, str]]:
    """What somebody may wonder at the start of a story, and how it turns out at the end."""
    for i, f in enumerate(story.friends):
        home, owned = f"in the {f.place}", with_article(f"{f.colour} {f.thing}")
        yield f"where {f.name} lives", f"{f.name} lives {home}"
        yield f"where the {f.animal} is at home", f"the {f.animal} is at home {home}"
        yield f"who lives {home}", f"{f.name} the {f.animal} lives {home}"
        yield f"who has the {f.thing}", f"{f.name} has the {f.thing}"
        yield f"who has the {f.colour} {f.thing}", f"{f.name} has the {f.colour} {f.thing}"
        yield f"what {f.name} has", f"{f.name} has {owned}"
        yield f"what colour the {f.thing} is", f"the {f.thing} is {f.colour}"
        yield f"what colour {f.name}'s {f.thing} is", f"{f.name}'s {f.thing} is {f.colour}"
        yield f"what kind of animal {f.name} is", f"{f.name} is {with_article(f.animal)}"
        if i in story.likes_food:
            yield f"what {f.name} loves", f"{f.name} loves {f.food}"
            yield f"who loves {f.food}", f"{f.name} loves {f.food}"


def _chats(rng: Random, story: Story) -> Iterator[str]:
    """What the friends say to each other after the story has been told."""
    for i, f in enumerate(story.friends):
        asks = rng.choice([g.name for g in story.friends if g is not f])
        owned = with_article(f"{f.colour} {f.thing}")
        yield f"Where do you live, {f.name}? asked {asks}. In the {f.place}, said {f.name}."
        yield f"Whose {f.thing} is it? asked {asks}. It is mine, said {f.name}."
        yield f"Who are you? asked {asks}. {f.name} the {f.animal}, who lives in the {f.place}."
        yield f"What do you have, {f.name}? asked {asks}. I have {owned}."
        yield f"What colour is your {f.thing}? asked {asks}. My {f.thing} is {f.colour}, said {f.name}."
        if i in story.likes_food:
            yield f"What do you love, {f.name}? asked {asks}. I love {f.food}."


def draw_first_text(rng: Random) -> str:
    """Draw a text for the start of pre-training: two friends, all told twice, so that a model finds out to copy."""
    story = draw_story(rng, num_friends=2)
    again = list(story.sentences)
    if rng.random() < 0.5:
        rng.shuffle(again)
    return " ".join([*story.sentences, "Now the same story once more.", *again])


def draw_text(rng: Random) -> str:
    """Draw a whole text for pre-training: riddles, a story of the training world, and what came of it.

    Nothing here looks like an instruction: what a model learns is to find a fact again when a sentence calls for it.
    """
    story = draw_story(rng, num_friends=rng.choice((2, 2, 3)))
    riddles = rng.sample(list(_riddles(rng, story)), rng.choice((1, 2)))
    people = rng.choice(("Everyone", "The children", "The king", "Grandmother"))
    parts = [f"{people} wondered {question}." for question, _ in riddles]
    parts += story.sentences
    if rng.random() < 0.25:
        parts += ["Now the same story once more.", *story.sentences]
    parts += [f"So now you know: {answer}." for _, answer in riddles]
    rest = [rng.choice(list(_events(rng, story))), rng.choice(list(_chats(rng, story)))]
    rng.shuffle(rest)
    names = join_words([f.name for f in story.friends])
    animals = join_words([f"the {f.animal}" for f in story.friends])
    ending = (
        f"{names} were the best of friends.",
        f"And so {animals} had tea.",
        f"Good night, {names}!",
        f"That was the story of the {('two', 'three')[len(story.friends) - 2]} friends {names}.",
    )
    return " ".join([*parts, *rest, rng.choice(ending)])
