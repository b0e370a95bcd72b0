"""Conversations in channels (analysis, commentary, final), as gpt-oss has them: all that the model writes is learnt."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tune.tokenizers import Message, from_checkpoint
from tune.tokenizers.chat_template import apply_chat_template, tokenize_examples

# The form in our own words: thoughts of earlier answers are dropped, but for those before a call that is still open.
OWN = """<|start|>system<|message|>Reasoning: {{ reasoning_effort or 'medium' }}<|end|>
{%- if tools %}<|start|>developer<|message|>{{ tools | tojson }}<|end|>{% endif %}
{%- for m in messages %}
    {%- set more = messages[loop.index:] | selectattr('role', 'eq', 'assistant') | rejectattr('tool_calls') | list %}
    {%- if m.role == 'assistant' and m.tool_calls %}
        {%- set call = m.tool_calls[0].function %}
        {%- if m.thinking and not more %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant to=functions.' + call.name + '<|channel|>commentary json<|message|>' }}
        {{- call.arguments | tojson + '<|call|>' }}
    {%- elif m.role == 'assistant' %}
        {%- set is_last = loop.last and not add_generation_prompt %}
        {%- if m.thinking and is_last %}
            {{- '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}
        {%- endif %}
        {{- '<|start|>assistant<|channel|>final<|message|>' + m.content }}
        {{- '<|return|>' if is_last else '<|end|>' }}
    {%- elif m.role == 'tool' %}
        {{- '<|start|>functions to=assistant<|channel|>commentary<|message|>' + m.content | tojson + '<|end|>' }}
    {%- else %}
        {{- '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|start|>assistant{% endif %}"""
# What Hugging Face's trl has of the published one, as it is and with the marks that its trainer learns by.
FORMS = Path(next(iter(importlib.util.find_spec("trl").submodule_search_locations))) / "chat_templates"
PUBLISHED, MARKED = ((FORMS / f"{name}.jinja").read_text() for name in ("gptoss", "gptoss_training"))
HEADER = "<|start|>assistant"

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "walk",
            "description": "go",
            "parameters": {"type": "object", "properties": {"way": {"type": "string"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "walk", "arguments": {"way": "green"}}}


def asked(text: str, role: str = "user") -> Message:
    return Message(role, text, masked=True)


SAID = Message("assistant", "seven", reasoning_content="hm, seven")
WALKED = Message("assistant", "", reasoning_content="must walk", tool_calls=(CALL,))
ARRIVED = Message("assistant", "there", reasoning_content="so there")
THOUGHT = "<|channel|>analysis<|message|>{}<|end|><|start|>assistant"
FINAL = "<|channel|>final<|message|>{}<|return|>"
CALLED = " to=functions.walk<|channel|>commentary json<|message|>" + '{"way": "green"}<|call|>'
ONE = THOUGHT.format("hm, seven") + FINAL.format("seven")
THERE = THOUGHT.format("so there") + FINAL.format("there")
# What is learnt, example by example.
CONVERSATIONS = {
    "an answer": ([asked("the question"), Message("assistant", "seven")], [[FINAL.format("seven")]]),
    "a thought": ([asked("be brief", "system"), asked("the question"), SAID], [[ONE]]),
    "answers": ([asked("the question"), SAID, asked("walk"), ARRIVED], [[ONE], [THERE]]),
    "a call": ([asked("walk"), WALKED], [[THOUGHT.format("must walk") + CALLED]]),
    "a call and what came of it": (
        [asked("walk"), WALKED, asked("gone", "tool"), ARRIVED],
        [[THOUGHT.format("must walk") + CALLED, THERE]],
    ),
    "a call before another question": (
        [asked("walk"), WALKED, asked("gone", "tool"), ARRIVED, asked("the question"), SAID],
        # Once an answer has followed, the thought before the call is gone.
        [[THOUGHT.format("must walk") + CALLED, THERE], [ONE]],
    ),
}


@pytest.fixture(scope="module")
def folder(chat_definition: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with the special tokens of the form."""
    tokenizer = Tokenizer.from_str(chat_definition)
    tokenizer.add_special_tokens(["<|return|>", "<|channel|>", "<|message|>"])
    folder = tmp_path_factory.mktemp("harmony")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|return|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def load(folder: Path, template: str):
    (folder / "chat_template.jinja").write_text(template)
    return from_checkpoint(folder)


def learnt(tokens: list[int], mask: list[bool]) -> list[list[int]]:
    """Return the runs of tokens that are learnt."""
    runs: list[list[int]] = []
    for place, token in enumerate(tokens):
        if not mask[place]:
            if place == 0 or mask[place - 1]:
                runs.append([])
            runs[-1].append(token)
    return runs


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", [OWN, PUBLISHED], ids=["own", "published"])
def test_all_channels_of_an_answer_are_learnt(template: str, name: str, folder: Path) -> None:
    messages, expected = CONVERSATIONS[name]
    tools = TOOLS if "call" in name else None
    tokenizer = load(folder, template)
    found = tokenize_examples(tokenizer, tokenizer.chat_template, messages, tools=tools)
    texts = [
        [tokenizer.decode(run, skip_special=False) for run in learnt(tokens, mask)] for tokens, mask in found
    ]
    assert texts == expected
    # What stands before the last answer is what the model is asked with.
    prompt = apply_chat_template(
        tokenizer, messages[:-1], template=tokenizer.chat_template, add_generation_prompt=True, tools=tools
    )
    tokens, mask = found[-1]
    assert tokens[: len(prompt)] == prompt
    assert not any(mask[len(prompt) :])


@pytest.mark.parametrize("name", ["an answer", "a thought", "a call"])
def test_the_marks_of_a_template_are_what_is_learnt(name: str, folder: Path) -> None:
    messages, _ = CONVERSATIONS[name]
    tools = TOOLS if "call" in name else None
    tokenizer = load(folder, MARKED)
    ((tokens, mask),) = tokenize_examples(tokenizer, tokenizer.chat_template, messages, tools=tools)
    rows = [message.to_dict() for message in messages]
    for row in rows:
        row["thinking"] = row.pop("reasoning_content", None)
        rows[rows.index(row)] = {name: value for name, value in row.items() if value is not None}
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        rows, tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    assert tokens == theirs["input_ids"]
    marked = [place for place, is_marked in enumerate(theirs["assistant_masks"]) if is_marked]
    ours = [place for place, is_masked in enumerate(mask) if not is_masked]
    # The marks hold the header that asks for the answer, too, which nobody has to write.
    header = tokenizer.encode(HEADER, add_bos=False, add_eos=False, parse_special=True)
    assert tokens[marked[0] : marked[0] + len(header)] == header
    assert ours == marked[len(header) :]
