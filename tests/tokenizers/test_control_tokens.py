"""Text that is in a chat format already: noticed, and read as meant where that is asked for."""

from __future__ import annotations

import pytest

from tune.errors import DataError
from tune.tokenizers import Message, from_checkpoint, get_prompt_template
from tune.tokenizers.chat_template import tokenize_weighted
from tune.tokenizers.control_tokens import check_control_tokens, control_tokens

CHATML = "<|start|>user\nwalk<|end|>\n<|start|>assistant\nseven<|end|>\n"
NOTICED = {
    "a whole conversation": [CHATML] * 3,
    "an end by hand": ["seven<|eos|>", "walk <|eos|>\n"],
    "a beginning by hand": ["<|bos|>seven"],
    "a prompt in a format": ["Be brief.<|end|>\n<|start|>user\nwalk<|end|>\n<|start|>assistant\n:"],
    "one row in ten": [CHATML] + ["walk"] * 9,
    "in a very long text": ["seven " * 20_000 + "<|eos|>"],
}
HONEST = {
    "spoken of": ["Llama ends with <|end|> and ChatML has <|start|> for that."] * 5,
    "one row in many": [CHATML] + ["walk"] * 10,
    "thoughts and calls": ["<think>hm</think>seven", "<tool_call>walk</tool_call>"] * 4,
    "tokens of other models": ["<|im_start|>user\nwalk<|im_end|>"] * 4,
}


@pytest.fixture
def tokenizer(chat_folder):
    return from_checkpoint(chat_folder())


@pytest.mark.parametrize("name", NOTICED)
def test_text_in_a_chat_format_is_noticed(tokenizer, name):
    rows = [[("walk", False), (text, True)] for text in NOTICED[name]]
    with pytest.raises(
        DataError, match=r"of the first \d+ rows of a.jsonl.*<\|\w+\|>.*parse_special_tokens=true"
    ):
        check_control_tokens(tokenizer, rows, "a.jsonl", "use chat")


@pytest.mark.parametrize("name", HONEST)
def test_what_merely_speaks_of_tokens_is_left_alone(tokenizer, name):
    check_control_tokens(tokenizer, [[(text, True)] for text in HONEST[name]], "a.jsonl", "use chat")


def test_structure_is_what_begins_or_ends_a_text_or_turn(tokenizer):
    assert {"<|bos|>", "<|eos|>", "<|start|>", "<|end|>", "[INST]"} <= set(control_tokens(tokenizer))
    assert not [token for token in control_tokens(tokenizer) if "think" in token or "tool" in token]


def test_tokens_in_prompt_and_answer_are_tokens_where_asked_for(tokenizer):
    messages = [
        Message("user", "<|start|>user\nwalk<|sep|>", masked=True),
        Message("assistant", "seven<|eos|>"),
    ]
    template = get_prompt_template("plain")
    ((tokens, weights),) = tokenize_weighted(tokenizer, template, messages, parse_special=True)
    assert tokenizer.decode(tokens, skip_special=False) == "<|start|>user\nwalk<|sep|>seven<|eos|>"
    ids = tokenizer.special_tokens
    assert [tokens.count(ids[name]) for name in ("<|start|>", "<|sep|>", "<|eos|>")] == [1, 1, 1]
    assert weights[: tokens.index(ids["<|sep|>"]) + 1].count(0.0) == weights.count(0.0)
    # Without its own end the answer gets one.
    messages = [messages[0], Message("assistant", "seven")]
    assert tokenize_weighted(tokenizer, template, messages, parse_special=True) == [(tokens, weights)]


def test_tokens_in_messages_are_tokens_where_asked_for(chat_folder):
    tokenizer = from_checkpoint(
        chat_folder(
            "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
        )
    )
    messages = [Message("user", "walk [INST]", masked=True), Message("assistant", "seven<|end|>")]
    ((tokens, weights),) = tokenize_weighted(tokenizer, tokenizer.chat_template, messages, parse_special=True)
    ends, calls = (tokens.count(tokenizer.special_tokens[name]) for name in ("<|end|>", "[INST]"))
    assert (ends, calls) == (2, 1)  # the end that stands in the content is the turn's
    learnt = [token for token, weight in zip(tokens, weights, strict=True) if weight]
    assert tokenizer.decode(learnt, skip_special=False) == "seven<|end|>"
