"""Weights of messages and of parts of them in every kind of template: the same tokens, each with the weight meant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.tokenizers.published_templates import PUBLISHED
from tests.tokenizers.test_chat_template_builtin import FORMATS, with_tokens
from tune.errors import DataError
from tune.tokenizers import Message, SentencePieceTokenizer, Tokenizer, from_checkpoint, tokenize_weighted
from tune.tokenizers.chat_template import ChatTemplate
from tune.tokenizers.learnt_places import weigh_tokens
from tune.tokenizers.templates import AnyTemplate, PromptTemplate, get_prompt_template

__all__ = ["with_tokens"]  # a fixture

# Half of a user's turn that has its role for content, a quarter of the first word of an answer, all of another turn.
TALK = [
    Message("system", "walk", masked=True),
    Message("user", "user", weight=0.5, spans=((0, 4, 0.5),)),
    Message("assistant", "green apple", spans=((0, 5, 0.25),)),
    Message("user", " seven\n", spans=((0, 7, 1.0),)),
    Message("assistant", "river", weight=0),
]
PLAIN = [replace(message, spans=(), weight=1, masked=message.role != "assistant") for message in TALK]
# What ends the user's turn, and the answer; where the first is no token that ends a turn, it is not learnt.
ENDS = {
    "llama3": ("<|eot_id|>", "<|eot_id|>"),
    "mistral": ("", "<|eos|>"),
    "gemma": ("<end_of_turn>", "<end_of_turn>"),
    "qwen2": ("<|im_end|>", "<|im_end|>"),
    "phi3": ("<|end|>", "<|end|>"),
    "phi4": ("<|im_end|>", "<|im_end|>"),
    "olmo2": ("", "<|eos|>"),
    "granite": ("<|end_of_text|>", "<|end_of_text|>"),
    "chatml": ("<|im_end|>", "<|im_end|>"),
}


def weighted_runs(tokenizer: Tokenizer, example: tuple[list[int], list[float]]) -> list[tuple[str, float]]:
    """Return the runs of one weight above 0, without white space around them."""
    runs: list[tuple[list[int], float]] = []
    last = 0.0
    for token, weight in zip(*example, strict=True):
        if weight and weight == last:
            runs[-1][0].append(token)
        elif weight:
            runs.append(([token], weight))
        last = weight
    return [(tokenizer.decode(ids, skip_special=False).strip(), weight) for ids, weight in runs]


def check(tokenizer: Tokenizer, template: AnyTemplate, talk: list[Message]) -> list[list[tuple[str, float]]]:
    """Check that weights change no token, and return the runs of each example."""
    plain = [message for message in PLAIN if message.role in {each.role for each in talk}]
    examples = tokenize_weighted(tokenizer, template, talk)
    bare = tokenize_weighted(tokenizer, template, plain)
    assert [ids for ids, _ in examples] == [ids for ids, _ in bare][: len(examples)]
    return [weighted_runs(tokenizer, example) for example in examples]


@pytest.mark.parametrize("name", FORMATS)
def test_weights_in_builtin_templates(with_tokens: Callable[..., Tokenizer], name: str) -> None:
    template = get_prompt_template(name)
    needs = template.needs if isinstance(template, ChatTemplate) else ("<|im_start|>", "<|im_end|>")
    talk = TALK[1:] if name == "gemma" else TALK  # it has no system
    user_end, end = ENDS[name]
    # A line break that a template keeps stands between the content and its end.
    is_trimmed = name in ("llama3", "gemma")
    second = [(f"seven{user_end}", 1)] if is_trimmed or not user_end else [("seven", 1), (user_end, 1)]
    expected = [(f"user{user_end}", 0.5), ("green", 0.25), (f"apple{end}", 1), *second]
    assert check(with_tokens(*needs), template, talk) == [expected]


@pytest.mark.parametrize(
    "name", ["chatml", "gemma", "llama31", "mistral, old", "qwen3", "in a macro", "as JSON"]
)
def test_weights_in_published_templates(chat_folder: Callable[..., Path], name: str) -> None:
    tokenizer = from_checkpoint(chat_folder(PUBLISHED[name]))
    template = tokenizer.chat_template
    assert template is not None
    runs = [run for example in check(tokenizer, template, TALK) for run in example]
    words = [
        (text.split("<|")[0].split("\n")[-1], weight) for text, weight in runs if not text.startswith("<|")
    ]
    assert words == [("user", 0.5), ("green", 0.25), ("apple", 1), ("seven", 1)]


@pytest.mark.parametrize("name", ["plain", "question_answer", "alpaca", "llama2_chat", "chatml"])
def test_weights_in_templates_of_text(spm_file: Path, name: str) -> None:
    template = get_prompt_template(name)
    ((*first, (apple, weight), (seven, _)),) = check(SentencePieceTokenizer(spm_file), template, TALK)
    assert first == [("user", 0.5), ("green", 0.25)]
    assert apple.startswith("apple")
    assert (weight, apple.endswith("</s>")) == (1, True)
    assert seven == "seven"


class Shouting(PromptTemplate):
    """A template of one's own that changes what is said."""

    def write_prompt(self, messages: Any) -> str:
        return "".join(message.content.upper() for message in messages) + ":"


def test_a_message_that_a_template_changes_is_told(spm_file: Path, chat_folder: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="changes the message by the user, so it cannot be told"):
        tokenize_weighted(SentencePieceTokenizer(spm_file), Shouting(), TALK[:3])
    shout = "{% for m in messages %}{{ '<|start|>' + m.role + '<|sep|>' }}{{ m.content if m.role != 'user' else '!' }}"
    tokenizer = from_checkpoint(
        chat_folder(
            shout + "<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant<|sep|>{% endif %}"
        )
    )
    template = tokenizer.chat_template
    assert template is not None
    asked = replace(TALK[1], content="seven", spans=((0, 5, 1.0),))
    with pytest.raises(DataError, match=r"does not write the message by the user as it is \('seven'\)"):
        tokenize_weighted(tokenizer, template, [TALK[0], asked, TALK[2]])


@pytest.mark.parametrize(
    ("places", "weights"),
    [
        ([(0, 3, 1.0)], [1, 0, 0, 0]),
        ([(3, 4, 1.0)], [0, 0, 0, 0]),  # the space before a word says nothing
        ([(4, 7, 0.5)], [0, 0.5, 0, 0]),
        ([(2, 5, 0.5), (5, 6, 1.0)], [0.5, 1, 0, 0]),
        ([(7, 9, 0.5)], [0, 0, 0.5, 0]),
        ([(8, 10, 0.5)], [0, 0, 0.5, 0.5]),
    ],
)
def test_a_token_has_the_greatest_weight_that_it_reaches_into(places: Any, weights: list[float]) -> None:
    spans = [(0, 3), (3, 7), (7, 9), (9, 10)]
    assert weigh_tokens("the sea\n\n.", spans, places) == weights
