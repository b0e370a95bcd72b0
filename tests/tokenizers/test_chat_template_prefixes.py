"""One run of a template tells every beginning of a conversation, or says that it does not."""

from __future__ import annotations

import pytest
from published_templates import IN_ORDER, OUT_OF_ORDER, PUBLISHED

from tune.tokenizers.chat_template_builtin import BUILTIN_NAMES, builtin_template, chatml_template
from tune.tokenizers.chat_template_prefixes import render_beginnings
from tune.tokenizers.chat_template_sandbox import TemplateFailure, render

NAMES = {"bos_token": "<|bos|>", "eos_token": "<|eos|>", "documents": None, "tools": None}
SOURCES = {name: builtin_template(name).source for name in BUILTIN_NAMES}
SOURCES |= {"chatml, built in": chatml_template().source, **PUBLISHED}


def talk(num_messages, system=True, tools=True):
    """Return a conversation with a call of a tool in it, thoughts, and contents with odd borders."""
    contents = [
        "the question",
        " <think>hm</think>\n\nseven ",
        "",
        "<|end|>",
        "日本 🌍\n",
        "a</think>b",
        "walk",
    ]
    messages = [{"role": "system", "content": "Be brief."}] if system else []
    for number in range(num_messages - len(messages)):
        role = ("user", "assistant")[number % 2]
        messages.append({"role": role, "content": contents[number % len(contents)]})
        if tools and number % 8 == 5:
            messages[-1]["tool_calls"] = [{"function": {"name": "walk", "arguments": {"n": number}}}]
        elif tools and number % 8 == 6:
            messages[-1]["role"] = "tool"
    return messages


def exact(source, given, cut):
    """Return what a run for this beginning alone writes."""
    messages = given["messages"][: cut[0]]
    try:
        return render(source, {**given, "messages": messages, "add_generation_prompt": cut[1]})
    except TemplateFailure as failure:
        return failure.args


@pytest.mark.parametrize("name", SOURCES)
def test_every_beginning_is_what_a_run_of_its_own_writes(name):
    for num_messages, system, tools in (
        (9, True, True),
        (12, False, False),
        (3, True, False),
        (1, False, False),
    ):
        given = {
            **NAMES,
            "messages": talk(num_messages, system, tools),
            "tools": [{"name": "walk"}] * tools or None,
        }
        cuts = [(count, is_asked) for count in range(num_messages + 1) for is_asked in (True, False)]
        known, texts = render_beginnings(SOURCES[name], given, [*cuts[2:], *cuts[:2]])
        for cut in cuts:
            found = texts[cut] if cut in texts else known.text(cut)
            found = found.args if isinstance(found, TemplateFailure) else found
            assert found == exact(SOURCES[name], given, cut), cut


@pytest.mark.parametrize(
    "name", [*sorted({*BUILTIN_NAMES} - {"olmo2"}), *IN_ORDER]
)  # OLMo 2 looks for the last
def test_one_run_is_enough_where_messages_are_written_in_order(name):
    given = {**NAMES, "messages": talk(10, system=False, tools=False)}
    cuts = [(count, is_asked) for count in range(2, 11) for is_asked in (True, False)]
    known, texts = render_beginnings(SOURCES[name], given, cuts)
    assert known is not None
    assert not texts


@pytest.mark.parametrize("name", OUT_OF_ORDER)
def test_where_one_run_does_not_tell_nothing_is_known(name):
    given = {**NAMES, "messages": talk(9, tools=False)}
    cuts = [(count, is_asked) for count in range(2, 10) for is_asked in (True, False)]
    known, texts = render_beginnings(SOURCES[name], given, cuts)
    assert known is None or all(known.text(cut) is None for cut in cuts[:2])
    assert list(texts)[:1] == cuts[:1]


def test_a_long_conversation_is_answered_in_parts():
    given = {**NAMES, "messages": [{"role": "user", "content": "x" * 1_500_000}] * 3}
    cuts = [(count, False) for count in (1, 2, 3)] * 4
    _, texts = render_beginnings(OUT_OF_ORDER["counted at first"], given, [*cuts, (1, True)])
    assert list(texts) == [(1, False), (2, False)]
