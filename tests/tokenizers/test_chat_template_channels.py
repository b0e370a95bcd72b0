"""A template of Gemma 4's form: one turn holds thoughts in channels, calls, what tools say, and the answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from tune.errors import DataError
from tune.tokenizers import Message, from_checkpoint
from tune.tokenizers.chat_template import tokenize_examples

SPECIAL = (
    *("<bos>", "<eos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|think|>", "<|tool>", "<tool|>"),
    *("<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", '<|"|>'),
)
TEMPLATE = """{%- macro value(v) -%}
    {%- if v is string %}{{ '<|"|>' + v + '<|"|>' }}
    {%- elif v is mapping %}{{ '{' }}{% for k, w in v | dictsort %}
        {{- k + ':' }}{{ value(w) }}{{ ',' if not loop.last }}
    {%- endfor %}{{ '}' }}
    {%- else %}{{ v }}{% endif %}
{%- endmacro -%}
{%- macro without_thought(text) -%}
    {%- set ns = namespace(said='') -%}
    {%- for part in text.split('<channel|>') %}
        {%- set ns.said = ns.said + part.split('<|channel>')[0] %}
    {%- endfor -%}
    {{- ns.said | trim -}}
{%- endmacro -%}
{%- set ns = namespace(open=none, last=-1) -%}
{%- set rest = messages -%}
{{- bos_token -}}
{%- if enable_thinking or tools or messages[0].role == 'system' -%}
    {{- '<|turn>system\n' -}}
    {%- if enable_thinking %}{{ '<|think|>\n' }}{% endif -%}
    {%- if messages[0].role == 'system' -%}
        {{- messages[0].content | trim -}}{% set rest = messages[1:] -%}
    {%- endif -%}
    {%- for t in tools or [] -%}
        {{- '<|tool>declaration:' + t.function.name + value(t.function.parameters) + '<tool|>' -}}
    {%- endfor -%}
    {{- '<turn|>\n' -}}
{%- endif -%}
{%- for m in rest %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor -%}
{%- for m in rest -%}
    {%- if m.role != 'tool' -%}
        {%- set role = 'model' if m.role == 'assistant' else m.role -%}
        {%- if not (role == 'model' and ns.open) %}{{ '<|turn>' + role + '\n' }}{% endif -%}
        {%- set ns.open = none -%}
        {%- if m.reasoning_content and loop.index0 > ns.last and (m.tool_calls or thinks_always) -%}
            {{- '<|channel>thought\n' + m.reasoning_content + '\n<channel|>' -}}
        {%- endif -%}
        {%- for c in m.tool_calls or [] -%}
            {{- '<|tool_call>call:' + c.function.name + value(c.function.arguments) + '<tool_call|>' -}}
            {%- set ns.open = 'call' -%}
        {%- endfor -%}
        {%- if ns.open -%}
            {%- set go = namespace(on=true) -%}
            {%- for k in range(loop.index0 + 1, rest | length) -%}
                {%- if rest[k].role != 'tool' %}{% set go.on = false %}{% endif -%}
                {%- if go.on -%}
                    {{- '<|tool_response>response:' + m.tool_calls[0].function.name -}}
                    {{- value({'value': rest[k].content}) + '<tool_response|>' -}}
                    {%- set ns.open = 'response' -%}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {{- without_thought(m.content) if role == 'model' else m.content | trim -}}
        {%- if ns.open == 'call' -%}{{- '<|tool_response>' -}}
        {%- elif not (ns.open and not m.content) -%}{{- '<turn|>\n' -}}{%- set ns.open = none -%}{%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and not ns.open -%}
    {{- '<|turn>model\n' -}}PROMPT_END
{%- endif -%}"""
# As the small sizes ask, and as the large ones do, which close a thought at once unless they shall think.
SMALL = TEMPLATE.replace("PROMPT_END", "")
LARGE = TEMPLATE.replace("PROMPT_END", "{{- '' if enable_thinking else '<|channel>thought\n<channel|>' -}}")
ALWAYS = SMALL.replace("thinks_always", "true")
QUESTION = Message("user", "hi", masked=True)
CALL = {"id": "1", "type": "function", "function": {"name": "walk", "arguments": {"to": "green", "n": 7}}}
WALK = Message("assistant", "", tool_calls=(CALL,))
SAID = Message("tool", "apple", masked=True)
CALLED = '⟦<|tool_call>call:walk{n:7,to:<|"|>green<|"|>}<tool_call|><|tool_response>⟧'
TOLD = 'response:walk{value:<|"|>apple<|"|>}<tool_response|>'
ASKED = "<bos><|turn>user\nhi<turn|>\n<|turn>model\n"


@pytest.fixture
def load(tmp_path):
    """Return the tokenizer of a folder with a chat template, and the folder."""
    tokenizer = Tokenizer(
        models.BPE(
            {letter: place for place, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL])
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"}

    def make(template: str) -> tuple[object, Path]:
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        content = json.dumps({**settings, "chat_template": template})
        (tmp_path / "tokenizer_config.json").write_text(content, encoding="utf-8")
        return from_checkpoint(tmp_path), tmp_path

    return make


def examples(tokenizer, messages, **variables):
    """Return each example's text, what is learnt in brackets."""
    found = []
    for tokens, mask in tokenize_examples(tokenizer, tokenizer.chat_template, messages, variables=variables):
        text, before = "", True
        for token, is_masked in [*zip(tokens, mask, strict=True), (None, True)]:
            text += "⟦" * (before and not is_masked) + "⟧" * (is_masked and not before)
            text += "" if token is None else tokenizer.decode([token], skip_special=False)
            before = is_masked
        found.append(text)
    return found


@pytest.mark.parametrize("template", [SMALL, LARGE], ids=["small", "large"])
def test_one_turn_is_learnt_in_its_parts(load, template):
    tokenizer, folder = load(template)
    thinking = Message("assistant", "", tool_calls=(CALL,), reasoning_content="hm")
    messages = [QUESTION, thinking, SAID, WALK, SAID, Message("assistant", "seven")]
    asked = "<bos><|turn>system\n<|think|>\n<turn|>\n<|turn>user\nhi<turn|>\n<|turn>model\n"
    thought = CALLED.replace("⟦", "⟦<|channel>thought\nhm\n<channel|>")
    expected = [f"{asked}{thought}{TOLD}{CALLED}{TOLD}⟦seven<turn|>⟧\n"]
    assert examples(tokenizer, messages, enable_thinking=True) == expected
    # And it is what transformers writes.
    theirs = AutoTokenizer.from_pretrained(folder)
    said = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "hm"},
        {"role": "tool", "content": "apple"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "apple"},
        {"role": "assistant", "content": "seven"},
    ]
    text = theirs.apply_chat_template(said, tokenize=False, enable_thinking=True)
    assert text == expected[0].replace("⟦", "").replace("⟧", "")


def test_a_thought_that_is_closed_at_once_is_read_and_not_learnt(load):
    tokenizer, _ = load(LARGE)
    messages = [QUESTION, Message("assistant", "seven"), QUESTION, Message("assistant", "eight")]
    empty = "<|channel>thought\n<channel|>"
    assert examples(tokenizer, messages) == [
        f"{ASKED}{empty}⟦seven<turn|>⟧",
        f"{ASKED}seven<turn|>\n<|turn>user\nhi<turn|>\n<|turn>model\n{empty}⟦eight<turn|>⟧",
    ]
    assert examples(load(SMALL)[0], messages) == [
        f"{ASKED}⟦seven<turn|>⟧\n<|turn>user\nhi<turn|>\n<|turn>model\n⟦eight<turn|>⟧\n"
    ]
    # One that stands in a message is no one's but the message's.
    odd = Message("user", "hi <|channel>thought\n<channel|>", masked=True)
    assert examples(tokenizer, [odd, Message("assistant", "seven")])[0].endswith(
        f"model\n{empty}⟦seven<turn|>⟧"
    )


def test_thoughts_are_learnt_where_the_template_writes_them(load):
    answer = Message("assistant", "seven", reasoning_content="hm")
    tokenizer, _ = load(ALWAYS)
    assert examples(tokenizer, [QUESTION, answer]) == [
        f"{ASKED}⟦<|channel>thought\nhm\n<channel|>seven<turn|>⟧\n"
    ]
    masked = Message("assistant", "seven", reasoning_content="hm", masks_reasoning=True)
    assert examples(tokenizer, [QUESTION, masked]) == [
        f"{ASKED}<|channel>thought\nhm\n<channel|>⟦seven<turn|>⟧\n"
    ]
    with pytest.raises(DataError, match="does not write its reasoning_content in message 2"):
        examples(load(SMALL)[0], [QUESTION, answer])


def test_a_call_without_answer_ends_where_one_would_begin(load):
    assert examples(load(SMALL)[0], [QUESTION, WALK]) == [ASKED + CALLED]
