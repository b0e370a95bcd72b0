"""Answers in channels: thoughts are told from what is said, whatever the model goes on to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from tune.generation import Chat, Sampling
from tune.generation.channels import AnswerReader
from tune.models.llama2 import llama2
from tune.tokenizers import from_checkpoint

HARMONY = """{% for m in messages %}{{ '<|start|>' + m.role }}
{%- if m.role == 'assistant' %}{{ '<|channel|>final' }}{% endif %}{{ '<|message|>' + m.content + '<|end|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"""
SPECIAL = ["<|return|>", "<|channel|>", "<|message|>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"]
ASKED = "<|start|>user<|message|>walk<|end|><|start|>assistant"
TURN = "<|turn>user\nwalk<turn|>\n<|turn>model\n"
THOUGHT = "<|channel|>analysis<|message|>hm, a river<|end|><|start|>assistant"
# Prompt, what the model writes: what it says, and what it thinks.
ANSWERS = {
    "gpt-oss": (
        ASKED,
        THOUGHT + "<|channel|>final<|message|>seven\n\n<|return|>",
        "seven\n\n",
        "hm, a river",
    ),
    "no thought": (ASKED, "<|channel|>final<|message|>seven<|return|>", "seven", ""),
    "in the final channel": (ASKED + "<|channel|>final<|message|>", "seven<|return|>", "seven", ""),
    "a preamble": (
        ASKED,
        f"<|channel|>commentary<|message|>so<|end|><|start|>assistant{THOUGHT}<|channel|>final<|message|>seven",
        "so\n\nseven",
        "hm, a river",
    ),
    "thoughts": (ASKED, THOUGHT * 2, "", "hm, a river\n\nhm, a river"),
    "cut in a thought": (ASKED, "<|channel|>analysis<|message|>hm", "", "hm"),
    "no form": (ASKED, "green river", "green river", ""),
    "Gemma 4": (TURN, "<|channel>thought\nhm, a river\n<channel|>seven<turn|>", "seven", "hm, a river\n"),
    "Gemma 4 asked not to think": (TURN + "<|channel>thought\n<channel|>", "seven", "seven", ""),
    "bare text": ("walk", THOUGHT + "seven", "analysishm, a riverassistantseven", ""),
}


@pytest.fixture
def tokenizer(chat_definition: str, chat_folder: Callable[..., Path]) -> Any:
    folder = chat_folder(HARMONY)
    tokenizer = Tokenizer.from_str(chat_definition)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    return from_checkpoint(folder)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return tokenizer.encode(text, add_bos=False, add_eos=False, parse_special=True)


def read(reader: AnswerReader, tokens: list[int]) -> str:
    return "".join([*(reader.push(token) for token in tokens), reader.finish()])


@pytest.mark.parametrize("name", ANSWERS)
def test_what_is_thought_is_no_answer(name: str, tokenizer: Any) -> None:
    prompt, written, answer, reasoning = ANSWERS[name]
    prompt_ids, tokens = ids_of(tokenizer, prompt), ids_of(tokenizer, written)
    reader = AnswerReader(tokenizer, prompt_ids)
    assert read(reader, tokens) == reader.answer == answer
    assert reader.reasoning == reasoning
    shown = read(AnswerReader(tokenizer, prompt_ids, show_reasoning=True), tokens)
    assert (
        shown.count("<think>")
        == shown.count("</think>")
        == written.count("analysis<") * (name != "bare text") + (written.count("<|channel>"))
    )
    assert shown.endswith(answer[-5:])
    stopped = AnswerReader(tokenizer, prompt_ids, ["river", "ven"])
    read(stopped, tokens)
    assert stopped.is_stopped == ("ven" in answer or "river" in answer)


TO_ITSELF = " to=self<|message|>hm, a river<|eom|><|start|>assistant"


@pytest.mark.parametrize(
    ("written", "answer", "reasoning"),
    [
        (TO_ITSELF + " to=user<|message|>seven<|eot|>", "seven", "hm, a river"),
        (" to=user<|message|>seven", "seven", ""),
        (TO_ITSELF + " to=walk<|message|>(green)<|eom|><|start|>assistant to=walk<|message|>(snow)<|eot|>",)
        + ("(green)\n\n(snow)", "hm, a river"),
        (" to=self<|message|>hm", "", "hm"),
    ],
    ids=["answer", "no thought", "calls", "cut in a thought"],
)
def test_what_a_model_says_to_itself_is_a_thought(
    written: str, answer: str, reasoning: str, chat_definition: str, chat_folder: Callable[..., Path]
) -> None:
    folder = chat_folder(HARMONY)
    tokenizer = Tokenizer.from_str(chat_definition)
    tokenizer.add_special_tokens(["<|message|>", "<|eom|>", "<|eot|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    muse = from_checkpoint(folder)
    prompt = ids_of(muse, "<|start|>user<|message|>walk<|eot|><|start|>assistant")
    reader = AnswerReader(muse, prompt)
    assert read(reader, ids_of(muse, written)) == reader.answer == answer
    assert reader.reasoning == reasoning


def test_a_chat_keeps_thoughts_and_asks_without(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = llama2(tokenizer.vocab_size, 1, 2, 8, 200, intermediate_dim=12)
    chat = Chat(model, tokenizer, tokenizer.chat_template, sampling=Sampling(), max_new_tokens=30, seed=0)
    asked: list[str] = []

    def scripted(ids: list[int], *settings: Any) -> list[int]:
        asked.append(tokenizer.decode(ids, skip_special=False))
        return ids_of(tokenizer, THOUGHT + "<|channel|>final<|message|>seven")

    monkeypatch.setattr(chat._session, "stream", scripted)
    assert "".join(chat.ask("walk")) == "seven"
    assert (chat.messages[-1].content, chat.messages[-1].reasoning_content) == ("seven", "hm, a river")
    "".join(chat.ask("walk"))
    turn = "<|start|>user<|message|>walk<|end|>"
    assert (
        asked[-1]
        == f"{turn}<|start|>assistant<|channel|>final<|message|>seven<|end|>{turn}<|start|>assistant"
    )
