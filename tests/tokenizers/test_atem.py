"""Turns that name whom they speak to (itself, a tool, the user), as Muse-Glimmer has them: all of them are learnt."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tune.tokenizers import Message, from_checkpoint
from tune.tokenizers.chat_template import apply_chat_template, tokenize_examples

# What Hugging Face's trl has of the published one, as it is and with the marks that its trainer learns by.
FORMS = Path(next(iter(importlib.util.find_spec("trl").submodule_search_locations))) / "chat_templates"
PUBLISHED, MARKED = ((FORMS / f"muse_glimmer{kind}.jinja").read_text() for kind in ("", "_training"))
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


def call(way: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "walk", "arguments": {"way": way}}}


def asked(text: str, role: str = "user") -> Message:
    return Message(role, text, masked=True)


# Without one the template writes today's date.
SYSTEM = asked("be brief", "system")
SAID = Message("assistant", "seven", reasoning_content="hm, seven")
WALKED = Message("assistant", "", reasoning_content="must walk", tool_calls=(call("green"), call("river")))
ARRIVED = Message("assistant", "there")
GONE = Message("tool", "gone", masked=True, name="walk")
THOUGHT = " to=self<|message|>{}<|eom|><|start|>assistant"
CALLED = (
    ' to=walk<|message|><atem:function_calls>\n<atem:invoke name="walk">\n'
    '<atem:parameter name="way">{}</atem:parameter>\n</atem:invoke>\n</atem:function_calls>'
)
TO_USER = " to=user<|message|>{}<|eot|>"
ONE = THOUGHT.format("hm, seven") + TO_USER.format("seven")
CALLS = (
    THOUGHT.format("must walk")
    + CALLED.format("green")
    + "<|eom|><|start|>assistant"
    + CALLED.format("river")
    + "<|eot|>"
)
# What is learnt. Thoughts stay where they are once more turns follow, so all is one example.
CONVERSATIONS = {
    "an answer": ([SYSTEM, asked("the question"), Message("assistant", "seven")], [TO_USER.format("seven")]),
    "a thought": ([SYSTEM, asked("the question"), SAID], [ONE]),
    "answers": (
        [SYSTEM, asked("the question"), SAID, asked("walk"), ARRIVED],
        [ONE, TO_USER.format("there")],
    ),
    "calls": ([SYSTEM, asked("walk"), WALKED], [CALLS]),
    "calls and what came of them": (
        [SYSTEM, asked("walk"), WALKED, GONE, GONE, ARRIVED, asked("the question"), SAID],
        [CALLS, TO_USER.format("there"), ONE],
    ),
}


@pytest.fixture(scope="module")
def folder(chat_definition: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer with the special tokens of the form."""
    tokenizer = Tokenizer.from_str(chat_definition)
    tokenizer.add_special_tokens(["<|start|>", "<|message|>", "<|eom|>", "<|eot|>"])
    folder = tmp_path_factory.mktemp("atem")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": "<|bos|>",
        "eos_token": "<|eot|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def load(folder: Path, template: str) -> Any:
    (folder / "chat_template.jinja").write_text(template)
    return from_checkpoint(folder)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_all_that_is_said_to_anyone_is_learnt(name: str, folder: Path) -> None:
    messages, expected = CONVERSATIONS[name]
    tools = TOOLS if "call" in name else None
    tokenizer = load(folder, PUBLISHED)
    ((tokens, mask),) = tokenize_examples(tokenizer, tokenizer.chat_template, messages, tools=tools)
    runs: list[list[int]] = []
    for token, is_masked, was_masked in zip(tokens, mask, [True, *mask], strict=False):
        if not is_masked:
            if was_masked:
                runs.append([])
            runs[-1].append(token)
    assert [tokenizer.decode(run, skip_special=False) for run in runs] == expected
    # What stands before the last answer is what the model is asked with.
    prompt = apply_chat_template(
        tokenizer, messages[:-1], template=tokenizer.chat_template, add_generation_prompt=True, tools=tools
    )
    assert tokens[: len(prompt)] == prompt
    assert not any(mask[len(prompt) :])


@pytest.mark.parametrize("name", ["an answer", "a thought", "calls"])
def test_the_marks_of_a_template_are_what_is_learnt(name: str, folder: Path) -> None:
    messages, _ = CONVERSATIONS[name]
    tools = TOOLS if "call" in name else None
    tokenizer = load(folder, MARKED)
    ((tokens, mask),) = tokenize_examples(tokenizer, tokenizer.chat_template, messages, tools=tools)
    rows = [
        {key: value for key, value in message.to_dict().items() if value is not None} for message in messages
    ]
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
