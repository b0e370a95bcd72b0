"""Flags on messages, as several tools write them: honoured to the token, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizers.test_chat_template_mask import TEMPLATES, THINKING
from tune.data import OpenAIToMessages, ShareGPTToMessages
from tune.datasets import chat_dataset, instruct_dataset
from tune.errors import ConfigError, DataError
from tune.tokenizers import Tokenizer, from_checkpoint

NAN = float("nan")
# Flags of an answer, and the weight that they give it.
WEIGHTS: list[tuple[dict[str, Any], float]] = [
    ({}, 1),
    ({"weight": None, "train": None, "train_detail": None}, 1),
    ({"weight": 0}, 0),
    ({"weight": 0.25}, 0.25),
    ({"train": False}, 0),
    ({"training": False}, 0),
    ({"training": True}, 1),
    ({"loss": False}, 0),
    ({"loss": 0.5}, 0.5),
    ({"loss": True}, 1),
    ({"masked": True}, 0),
    ({"masked": False}, 1),
    ({"loss_scale": 2.5}, 2.5),
    ({"loss_scale": 0.0}, 0),
    ({"train": True, "weight": 0.5, "masked": False}, 0.5),
    ({"train": False, "weight": 0, "masked": True, "loss": False}, 0),
    ({"train_detail": []}, 0),
    ({"train_detail": [{"begin_offset": 0, "end_offset": 2, "train": False}]}, 0),
]
# Flags that cannot be honoured, and words of the error.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"weight": "0"}, "the text '0' as weight, expected a number from 0 to 1"),
    ({"weight": True}, "the boolean true as weight"),
    ({"weight": -0.1}, "the number -0.1 as weight"),
    ({"weight": 1.01}, "the number 1.01 as weight"),
    ({"weight": NAN}, "the number nan as weight"),
    ({"train": 1}, "the number 1 as train, expected true or false"),
    ({"train": "no"}, "the text 'no' as train"),
    ({"training": "false"}, "as training, expected true or false"),
    ({"masked": 0}, "as masked, expected true or false"),
    ({"loss": "true"}, "as loss, expected true, false or a number from 0 to 1"),
    ({"loss_scale": True}, "the boolean true as loss_scale, expected a number from 0 to 1000"),
    ({"loss_scale": 1001}, "the number 1001 as loss_scale"),
    ({"train": True, "weight": 0}, "weight: 0 and train: true, which contradict"),
    ({"masked": True, "loss": True}, "loss: true and masked: true, which contradict"),
    ({"weight": 0.5, "loss_scale": 0.25}, "weight: 0.5 and loss_scale: 0.25, which contradict"),
    (
        {"train": False, "train_detail": [{"begin_offset": 0, "end_offset": 2, "train": True}]},
        "train: false and train_detail with some train: true",
    ),
    ({"train_detail": "0-2"}, "the text '0-2' as train_detail, expected a list"),
    ({"train_detail": [{"begin_offset": 0, "train": True}]}, "expected begin_offset and end_offset"),
    ({"train_detail": [{"begin_offset": 2, "end_offset": 1, "train": True}]}, "from character 2 to 1"),
    ({"train_detail": [{"begin_offset": 0, "end_offset": 99, "train": True}]}, "content has 5 characters"),
    ({"train_detail": [], "training_detail": []}, "train_detail and training_detail: one of them"),
]
STYLES = {
    "openai": (OpenAIToMessages(), "messages", ("role", "content"), ("user", "assistant")),
    "sharegpt": (ShareGPTToMessages(), "conversations", ("from", "value"), ("human", "gpt")),
}


def row_of(style: str, asked: dict[str, Any], answered: dict[str, Any]) -> dict[str, Any]:
    _, column, (speaker, said), roles = STYLES[style]
    contents = (("seven", asked), ("green", answered))
    return {column: [{speaker: r, said: text, **flags} for r, (text, flags) in zip(roles, contents)]}


@pytest.mark.parametrize("style", STYLES)
def test_every_flag_says_what_its_tool_means(style: str) -> None:
    transform = STYLES[style][0]
    for flags, weight in WEIGHTS:
        messages = transform(row_of(style, {}, flags))["messages"]
        assert [message.weight for message in messages] == [0, weight], flags


@pytest.mark.parametrize("style", STYLES)
def test_flags_that_cannot_be_honoured_are_refused(style: str) -> None:
    for flags, words in WRONG:
        with pytest.raises(DataError) as caught:
            STYLES[style][0](row_of(style, {}, flags))
        assert words in str(caught.value)
        assert str(caught.value).startswith(f"message 2 in {STYLES[style][1]!r} has")


def test_a_fraction_that_would_have_no_effect_is_refused() -> None:
    for asked in ({"weight": 1}, {"weight": 0}, {"loss": False}, {"masked": True}):
        messages = OpenAIToMessages()(row_of("openai", asked, {}))["messages"]
        assert [message.weight for message in messages] == [0, 1]
    with pytest.raises(DataError, match=r"message 1 .* has weight: 0\.5, .*train_on_input=true"):
        OpenAIToMessages()(row_of("openai", {"weight": 0.5}, {}))
    read = OpenAIToMessages(train_on_input=True)(row_of("openai", {"weight": 0.5}, {}))
    assert [message.weight for message in read["messages"]] == [0.5, 1]


class Data:
    """Writes rows, reads them as a dataset, and says what is learnt of them."""

    def __init__(self, folder: Path, chat_folder: Callable[..., Path]) -> None:
        self.folder = folder
        self.chat_folder = chat_folder

    def tokenizer(self, template: str) -> Tokenizer:
        return from_checkpoint(self.chat_folder(template))

    def read(self, rows: list[list[dict[str, Any]]], template: str, **arguments: Any) -> Any:
        source = self.folder / "rows.jsonl"
        source.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
        self.used = self.tokenizer(template)
        return chat_dataset(self.used, source=str(source), **arguments)

    def learnt(self, rows: list[list[dict[str, Any]]], template: str, **arguments: Any) -> list[Any]:
        """Return the runs of text that are learnt, of one weight each, for each example."""
        dataset = self.read(rows, template, **arguments)
        return [runs_of(self.used, dataset[index]) for index in range(len(dataset))]


def runs_of(tokenizer: Tokenizer, example: dict[str, Any]) -> list[tuple[str, float]]:
    weights = example.get("weights") or [1.0] * len(example["tokens"])
    runs: list[tuple[list[int], float]] = []
    last = 0.0
    for token, label, weight in zip(example["tokens"], example["labels"], weights, strict=True):
        weight = 0.0 if label == -100 else weight
        if weight and weight == last:
            runs[-1][0].append(token)
        elif weight:
            runs.append(([token], weight))
        last = weight
    return [(tokenizer.decode(ids, skip_special=False), weight) for ids, weight in runs]


@pytest.fixture
def data(tmp_path: Path, chat_folder: Callable[..., Path]) -> Data:
    return Data(tmp_path, chat_folder)


def chat(*flags: dict[str, Any]) -> list[dict[str, Any]]:
    said = [
        ("system", "walk"),
        ("user", "the user"),
        ("assistant", "green apple"),
        ("user", "user"),
        ("assistant", "river"),
    ]
    return [{"role": r, "content": c, **f} for (r, c), f in zip(said, flags, strict=True)]


DETAIL = [
    {"begin_offset": 0, "end_offset": 1, "train": False},
    {"begin_offset": 6, "end_offset": 10, "train": True},
]
TRAIN, LEAVE = {"train": True}, {"train": False}
# Flags of system, user, assistant, user, assistant; what is learnt in "headers", and in a template of text.
CASES: dict[str, tuple[list[dict[str, Any]], list[tuple[str, float]], list[tuple[str, float]]]] = {
    "none": (
        [{}, {}, {}, {}, {}],
        [("green apple<|end|>", 1), ("river<|end|>", 1)],
        [("green apple<|eos|>", 1), ("river<|eos|>", 1)],
    ),
    "an answer less, and a user": (
        [{}, {}, {"loss": False}, {"train": True}, {"weight": 0.5}],
        [("user<|end|>", 1), ("river<|end|>", 0.5)],
        [(" user", 1), ("river<|eos|>", 0.5)],
    ),
    "a user beside a system": (
        [{"train": False}, {"loss_scale": 0.5}, {}, {}, {"weight": 0}],
        [("the user<|end|>", 0.5), ("green apple<|end|>", 1)],
        [(" the user", 0.5), ("green apple<|eos|>", 1)],
    ),
    "a part of an answer": (
        [{}, {}, {"train_detail": DETAIL}, {}, {"weight": 0}],
        [(" apple<|end|>", 1)],
        [(" apple<|eos|>", 1)],
    ),
    "a part of a user": (
        [
            {},
            {"training_detail": [{"begin_offset": 4, "end_offset": 7, "train": True}]},
            {},
            {},
            {"masked": True},
        ],
        [(" user<|end|>", 1), ("green apple<|end|>", 1)],
        [(" user", 1), ("green apple<|eos|>", 1)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_flags_are_honoured_to_the_token(data: Data, name: str) -> None:
    flags, in_turns, in_text = CASES[name]
    template = TEMPLATES["headers"]
    assert data.learnt([chat(*flags)], template) == [in_turns]
    plain = data.read([chat(*[{}] * 5)], template)[0]
    assert data.read([chat(*flags)], template)[0]["tokens"] == plain["tokens"]
    text = {"user": ["Q: ", "\n"], "assistant": ["A:", ""], "system": ["S: ", "\n"]}
    assert data.learnt([chat(*flags)], template, prompt_template=text) == [in_text]


def test_parts_of_a_content_have_weights_of_their_own(data: Data) -> None:
    parts = [
        {"type": "text", "text": "green", "weight": 0},
        {"type": "text", "text": " apple"},
        {"type": "text", "text": " river", "weight": 0.5},
    ]
    row = [{"role": "user", "content": "walk"}, {"role": "assistant", "content": parts}]
    expected = [(" apple", 1.0), (" river", 0.5), ("<|end|>", 1.0)]
    assert data.learnt([row], TEMPLATES["headers"]) == [expected]
    row[1]["weight"] = 0.5
    assert data.learnt([row], TEMPLATES["headers"]) == [[(" apple", 0.5), (" river", 0.25), ("<|end|>", 0.5)]]
    for part in parts:
        part["weight"] = 0
    with pytest.raises(DataError, match="in all 1 rows no answer is to be learnt"):
        data.read([row], TEMPLATES["headers"])


def test_rows_without_an_answer_to_learn_are_counted(data: Data) -> None:
    silent, kept = chat({}, {}, {"weight": 0}, {}, {"loss": False}), chat({}, {}, {}, {}, {"weight": 0})
    dataset = data.read([silent, kept, silent], TEMPLATES["headers"])
    report = dataset.report()
    assert (len(dataset), report.num_unlearnt, report.num_dropped, report.num_empty_answers) == (1, 2, 0, 0)
    assert "2 of 3 rows are left out, no answer to learn: weight 0" in str(report)
    last = data.read([silent, kept, chat(*[{}] * 5)], TEMPLATES["headers"], train_on="last")
    assert (len(last), last.report().num_unlearnt) == (1, 2)
    with pytest.raises(DataError, match=r"nothing to learn.* in all 1 rows.* weight 0"):
        data.read([silent], TEMPLATES["headers"])


def test_train_on_last_learns_the_last_answer_alone(data: Data) -> None:
    rows = [chat(*[{}] * 5), chat({}, TRAIN, TRAIN, {}, {"weight": 0.5})]
    found = data.learnt(rows, TEMPLATES["headers"], train_on="last")
    assert found == [[("river<|end|>", 1)], [("river<|end|>", 0.5)]]
    with pytest.raises(ConfigError, match=r"train_on is 'first', expected 'all' or 'last'"):
        data.read(rows, TEMPLATES["headers"], train_on="first")
    with_prompt = data.learnt(rows[:1], TEMPLATES["headers"], train_on="last", train_on_input=True)
    assert with_prompt == [[("<|start|>user<|sep|>user<|end|><|start|>assistant<|sep|>river<|end|>", 1)]]


@pytest.mark.parametrize("form", ["reasoning_content", "content"])
def test_reasoning_is_learnt_or_only_read(data: Data, form: str) -> None:
    def answer(thought: str, said: str) -> dict[str, Any]:
        if form == "content":
            return {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\n{said}"}
        return {"role": "assistant", "content": said, "reasoning_content": thought}

    row = [
        {"role": "user", "content": "walk"},
        answer("the seven", "seven apples"),
        {"role": "user", "content": "river"},
        answer("of green", "green"),
    ]
    learnt = data.learnt([row], THINKING)
    first, second = (
        "<think>\nthe seven\n</think>\n\nseven apples<|end|>",
        "<think>\nof green\n</think>\n\ngreen<|end|>",
    )
    assert learnt == [[(first, 1)], [(second, 1)]]
    assert data.learnt([row], THINKING, train_on="last") == [[(second, 1)]]
    without = data.read([row], THINKING, train_on_reasoning=False)
    assert [runs_of(data.used, without[index]) for index in range(2)] == [
        [("seven apples<|end|>", 1)],
        [("green<|end|>", 1)],
    ]
    # It is read all the same, and the tokens are those of a run that learns it.
    assert [without[i]["tokens"] for i in range(2)] == [
        data.read([row], THINKING)[i]["tokens"] for i in range(2)
    ]
    with_prompts = data.learnt([row], THINKING, train_on_reasoning=False, train_on_input=True)[-1]
    assert [text for text, _ in with_prompts][-1] == "green<|end|>"
    assert "of green" not in "".join(text for text, _ in with_prompts)


def test_a_thought_of_one_letter_is_found_behind_its_tag(data: Data) -> None:
    for answer in ({"content": "<think>i</think>green"}, {"content": "green", "reasoning_content": "i"}):
        row = [{"role": "user", "content": "walk"}, {"role": "assistant", **answer}]
        assert data.learnt([row], THINKING, train_on_reasoning=False) == [[("green<|end|>", 1)]]


def test_reasoning_in_a_text_template_is_only_read(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "think.jsonl"
    path.write_text(json.dumps({"prompt": "walk", "completion": "<think>seven</think>\n\nthe river"}) + "\n")
    tokenizer = data.tokenizer(TEMPLATES["headers"])
    for arguments, expected in (
        ({}, "<think>seven</think>\n\nthe river<|eos|>"),
        ({"train_on_reasoning": False}, "the river<|eos|>"),
    ):
        dataset = instruct_dataset(tokenizer, source=str(path), **arguments)
        assert runs_of(tokenizer, dataset[0]) == [(expected, 1)]


def test_a_detail_is_found_where_the_template_puts_it(data: Data) -> None:
    said = "<think>\nthe seven\n</think>\n\ngreen apple"
    start = said.index("green")
    detail = [{"begin_offset": start, "end_offset": start + 4, "train": True}]
    row = [
        {"role": "user", "content": "walk"},
        {"role": "assistant", "content": said, "train_detail": detail},
    ]
    assert data.learnt([row], THINKING) == [[("green", 1), ("<|end|>", 1)]]


def test_joined_turns_keep_their_weights(data: Data) -> None:
    row = [
        {"role": "user", "content": "walk", "loss": False},
        {"role": "user", "content": "the user"},
        {"role": "assistant", "content": "green", "weight": 0.5},
        {"role": "assistant", "content": "apple"},
    ]
    found = data.learnt([row], TEMPLATES["headers"], on_odd_turns="merge")
    assert found == [[("green", 0.5), ("\n\napple<|end|>", 1)]]
    row[2]["weight"] = 0
    found = data.learnt([row], TEMPLATES["headers"], on_odd_turns="merge")
    assert found == [[("\n\napple<|end|>", 1)]]
    context = {"role": "context", "content": "seven", "train": True}
    row = [context, {"role": "user", "content": "walk"}, {"role": "assistant", "content": "green"}]
    assert data.learnt([row], TEMPLATES["headers"]) == [
        [("seven\n\n", 1), ("<|end|>", 1), ("green<|end|>", 1)]
    ]


def test_a_part_that_is_no_text_has_no_weight(data: Data) -> None:
    parts = [{"type": "thinking", "thinking": "seven", "weight": 0}, {"type": "text", "text": "green"}]
    row = [{"role": "user", "content": "walk"}, {"role": "assistant", "content": parts}]
    with pytest.raises(DataError, match="part of type 'thinking' with weight 0; only texts have one"):
        data.read([row], THINKING)


def test_the_example_of_axolotls_docs_is_read_as_meant(data: Data) -> None:
    """Every kind of its flags, in a template that rewrites earlier answers, with one text said by both."""
    well, meant = "walk doing very well, thank you!", [(0, 8, False), (9, 18, True), (19, 31, False)]
    detail = [{"begin_offset": b, "end_offset": e, "train": t} for b, e, t in meant]
    turns = [
        ("system", "walk", {"train": False}),
        ("human", "seven", {"train": False}),
        ("assistant", "seven", {"train": True}),
        ("human", "river?", {"train": True}),
        ("assistant", well, {"train_detail": detail}),
        ("human", well, {"train": True}),
        ("assistant", "green!", {"train": True}),
    ]
    row = [{"from": role, "value": said, **flags} for role, said, flags in turns]
    empty = "<think>\n\n</think>\n\n"
    assert data.learnt([row], THINKING) == [
        [(f"{empty}seven<|end|>", 1)],
        [("river?<|end|>", 1), (f"{well[9:19]}", 1), ("<|end|>", 1)],
        [(f"{well}<|end|>", 1), (f"{empty}green!<|end|>", 1)],
    ]
    whole = data.learnt([row], TEMPLATES["headers"])
    assert whole == [
        [
            ("seven<|end|>", 1),
            ("river?<|end|>", 1),
            (f"{well[9:19]}", 1),
            ("<|end|>", 1),
            (f"{well}<|end|>", 1),
            ("green!<|end|>", 1),
        ]
    ]
