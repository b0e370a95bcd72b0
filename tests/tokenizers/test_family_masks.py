"""What is learnt of the forms that OLMo 3, Ministral 3, Seed-OSS and LFM2 write: what a template's own marks say."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tune.tokenizers import Message, from_checkpoint
from tune.tokenizers.chat_template import tokenize_examples

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|tool_call_start|>", "<|tool_call_end|>", "[TOOL_CALLS]", "[ARGS]"]
SPECIAL += ["<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"]
# In our own words, each with marks around what the model has to write.
FORMS = {
    # The last answer ends in another token than those before it; results come from an environment.
    "olmo3": """{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- generation %}
            {{- m.content or '' }}
            {%- for c in m.tool_calls or [] %}
                {{- '<function_calls>' + c.function.name + '(' + c.function.arguments | tojson + ')</function_calls>' }}
            {%- endfor %}
            {{- eos_token if loop.last else '<|im_end|>' }}
        {%- endgeneration %}
        {{- '' if loop.last else '\n' }}
    {%- else %}
        {{- '<|im_start|>' + ('environment' if m.role == 'tool' else m.role) + '\n' + m.content }}
        {{- '<functions>' + tools | tojson + '</functions>' if tools and m.role == 'system' else '' }}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    # No header before an answer.
    "ministral3": """{{- bos_token }}
{%- if tools %}{{ '[AVAILABLE_TOOLS]' + tools | tojson + '[/AVAILABLE_TOOLS]' }}{% endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- generation %}
            {{- '[THINK]' + m.reasoning_content + '[/THINK]' if m.reasoning_content else '' }}
            {{- m.content or '' }}
            {%- for c in m.tool_calls or [] %}
                {{- '[TOOL_CALLS]' + c.function.name + '[ARGS]' + c.function.arguments | tojson }}
            {%- endfor %}
            {{- eos_token }}
        {%- endgeneration %}
    {%- elif m.role == 'system' %}{{ '[SYSTEM_PROMPT]' + m.content + '[/SYSTEM_PROMPT]' }}
    {%- elif m.role == 'tool' %}{{ '[TOOL_RESULTS]' + m.content + '[/TOOL_RESULTS]' }}
    {%- else %}{{ '[INST]' + m.content + '[/INST]' }}{% endif %}
{%- endfor %}""",
    # A turn begins with BOS; its thought stands in tokens of its own.
    "seed_oss": """{%- for m in messages %}
    {{- bos_token + m.role + '\n' }}
    {%- if m.role == 'assistant' %}
        {%- generation %}
            {{- '<seed:think>' + m.reasoning_content + '</seed:think>\n' if m.reasoning_content else '' }}
            {{- m.content or '' }}
            {%- for c in m.tool_calls or [] %}
                {{- '<seed:tool_call>\n<function=' + c.function.name + '>' }}
                {%- for name, value in c.function.arguments | items %}
                    {{- '<parameter=' + name + '>' + value + '</parameter>' }}
                {%- endfor %}
                {{- '</function>\n</seed:tool_call>' }}
            {%- endfor %}
            {{- eos_token }}
        {%- endgeneration %}
    {%- else %}{{ m.content + (tools | tojson if tools and loop.first else '') + eos_token }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{% endif %}""",
}
TRL = Path(next(iter(importlib.util.find_spec("trl").submodule_search_locations))) / "chat_templates"
# What Hugging Face's trl has of the published ones, with the marks that its trainer learns by.
FORMS |= {name: (TRL / f"{name}_training.jinja").read_text() for name in ("lfm2", "lfm2_v2")}
CALL = {"type": "function", "function": {"name": "walk", "arguments": {"way": "green"}}}
TOOLS = [
    {"type": "function", "function": {"name": "walk", "parameters": {"type": "object", "properties": {}}}}
]
QUESTIONS = [Message("system", "be brief"), Message("user", "the question"), Message("user", "walk")]


def answered(form: str) -> list[Message]:
    """A conversation with what the form knows: thoughts, a call and its result."""
    thought = "hm, seven" if form in ("ministral3", "seed_oss") else None
    first = Message("assistant", "seven", reasoning_content=thought)
    messages = [*QUESTIONS[:2], first, QUESTIONS[2]]
    if form != "lfm2":  # its first version writes no calls
        messages += [Message("assistant", "", reasoning_content=thought, tool_calls=(CALL,))]
        messages += [Message("tool", "gone")]
    return [*messages, Message("assistant", "there", reasoning_content=thought)]


@pytest.fixture(scope="module")
def definition(chat_definition: str) -> str:
    tokenizer = Tokenizer.from_str(chat_definition)
    tokenizer.add_special_tokens(SPECIAL)
    return str(tokenizer.to_str())


@pytest.mark.parametrize("form", FORMS)
def test_each_answer_is_learnt_as_the_marks_have_it(form: str, definition: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(definition)
    ends_in = "<|im_end|>" if form.startswith("lfm2") else "<|eos|>"
    settings = {"bos_token": "<|bos|>", "eos_token": ends_in, "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.jinja").write_text(FORMS[form])
    tokenizer, reference = from_checkpoint(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    tools = None if form == "lfm2" else TOOLS
    messages = answered(form)
    answers = [place for place, message in enumerate(messages) if message.role == "assistant"]
    for last in answers:
        asked = [replace(message, masked=True) for message in messages[:last]]
        ((tokens, mask),) = tokenize_examples(
            tokenizer, tokenizer.chat_template, [*asked, messages[last]], tools=tools
        )
        ids, marked = marks(reference, messages[: last + 1], tools)
        learnt = [place for place, is_masked in enumerate(mask) if not is_masked]
        assert tokens == ids
        assert tokenizer.decode([tokens[learnt[-1]]], skip_special=False) == ends_in
        run = [place for place in marked if place >= learnt[0]]
        # The marks of trl hold the line break behind the end, too, which nobody has to write.
        assert learnt == run[: len(learnt)]
        assert tokenizer.decode([tokens[place] for place in run[len(learnt) :]]).strip() == ""
        assert (len(run) > len(learnt)) == form.startswith("lfm2")
        assert learnt[0] - 1 not in marked
    # All at once, where no answer is written otherwise once more follow.
    found = tokenize_examples(
        tokenizer, tokenizer.chat_template, [masked(message) for message in messages], tools=tools
    )
    assert len(found) == (len(answers) if form == "olmo3" else 1)
    if form != "olmo3":
        assert sum(starts(found[0][1])) == len(answers)


def marks(reference: Any, messages: list[Message], tools: Any) -> tuple[list[int], list[int]]:
    """Return the ids of a conversation by transformers, and the places that the template marks."""
    rows = [
        {key: value for key, value in message.to_dict().items() if value is not None} for message in messages
    ]
    found = reference.apply_chat_template(
        rows, tools=tools, return_dict=True, return_assistant_tokens_mask=True
    )
    return found["input_ids"], [
        place for place, is_marked in enumerate(found["assistant_masks"]) if is_marked
    ]


def masked(message: Message) -> Message:
    return message if message.role == "assistant" else replace(message, masked=True)


def starts(mask: list[bool]) -> list[bool]:
    """Where something that is learnt begins."""
    return [not now and before for before, now in zip([True, *mask], mask)]
