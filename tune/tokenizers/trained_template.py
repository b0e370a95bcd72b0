"""The chat template that says what a model was trained in, for any tool that renders Jinja."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from tune.tokenizers.chat_template_data import plain_data
from tune.tokenizers.chat_template_render import ChatTemplate
from tune.tokenizers.templates import (
    AnyTemplate,
    Llama2ChatTemplate,
    PlainTemplate,
    PromptTemplate,
    get_prompt_template,
    text_template_names,
)
from tune.utils.logging import get_logger


def as_chat_template(
    template: AnyTemplate, add_bos: bool, system_prompt: str, variables: Mapping[str, Any]
) -> ChatTemplate | None:
    """Return what other tools have to render to write what was trained, None where Jinja cannot say it.

    Args:
        template: what conversations were written in, as it is used with the tokenizer.
        add_bos: texts of the tokenizer begin with a BOS.
        system_prompt: what conversations without a system text began with.
        variables: what the template was given beside the conversation.
    """
    if isinstance(template, PlainTemplate):
        return None
    source = template.source if isinstance(template, ChatTemplate) else to_jinja(template, add_bos)
    if source is None:
        get_logger().warning(
            f"The template {template.name} is code, so no chat template can be saved of it: ask the trained model with "
            "the same template."
        )
        return None
    first = _defaults(system_prompt, variables)
    if isinstance(template, PromptTemplate):
        return ChatTemplate(_once(first, source), template.name)
    if not first:
        return template
    for_tools = None if template.for_tools is None else _once(first, template.for_tools)
    return ChatTemplate(_once(first, source), template.name, template.origin, for_tools=for_tools)


def text_template_in(source: str, add_bos: bool) -> PromptTemplate | None:
    """Return the text template of this package that a chat template was saved of, None for any other."""
    return _text_templates(add_bos).get(source)


@cache
def _text_templates(add_bos: bool) -> dict[str, PromptTemplate]:
    found = {}
    for name in text_template_names():
        template = get_prompt_template(name)
        assert isinstance(template, PromptTemplate)
        if (source := to_jinja(template, add_bos)) is not None:
            found[source] = template
    return found


def to_jinja(template: PromptTemplate, add_bos: bool) -> str | None:
    """Return the chat template that writes what a text template does, None where code of one's own writes it.

    Args:
        template: texts around messages.
        add_bos: texts of the tokenizer begin with a BOS.
    """
    begin = _quoted(template.assistant[0])
    if type(template) is Llama2ChatTemplate:
        around = template.user
        prompt = f"{_quoted(around[0])} ~ asked.text.strip() ~ {_quoted(around[1])} ~ {begin}"
        answer, user = "message.content.strip()", ("", "")
    elif all(
        getattr(type(template), name) is getattr(PromptTemplate, name)
        for name in ("segments", "write_prompt", "write_answer")
    ):
        prompt, answer, user = f"asked.text ~ {begin}", "message.content", template.user
    else:
        return None
    bos = "bos_token ~ " if add_bos else ""
    branches = [
        f"{{% if message.role == 'assistant' %}}{{{{ {bos}({prompt}) ~ {_wrapped(answer, ('', template.assistant[1]))}"
        " ~ eos_token }}{% set asked.text = '' %}{% set asked.open = false %}"
    ]
    for role, texts in (("user", user), ("system", template.system)):
        branches.append(
            f"{{% elif message.role == '{role}' %}}"
            f"{{% set asked.text = asked.text ~ {_wrapped('message.content', texts)} %}}{{% set asked.open = true %}}"
        )
    return (
        "{% set asked = namespace(text='', open=false) %}{% for message in messages %}"
        + "".join(branches)
        + "{% else %}{{ raise_exception('there is no role ' ~ message.role) }}{% endif %}{% endfor %}"
        + f"{{% if asked.open or add_generation_prompt %}}{{{{ {bos}({prompt}).rstrip(' ') }}}}{{% endif %}}"
    )


def wrap_contents(inner: PromptTemplate, outer: ChatTemplate, name: str) -> ChatTemplate:
    """Return a chat template that writes the texts of `inner` around each content, inside of the turns of `outer`.

    Args:
        inner: its text before an answer ends what is asked.
        outer: writes the turns.
        name: of the result.
    """
    asked = (inner.user[0], inner.user[1] + inner.assistant[0])
    # White space that parts the system's text from a question has no place where turns part them.
    system = inner.system if any(text.strip() for text in inner.system) else ("", "")
    around = {"user": asked, "system": system, "assistant": ("", inner.assistant[1])}
    branches = [
        f"{{% {'el' * bool(number)}if message.role == '{role}' %}}{{% set asked.messages = asked.messages + "
        f"[dict(message, content={_wrapped('message.content', texts)})] %}}"
        for number, (role, texts) in enumerate(around.items())
    ]
    first = (
        "{% set asked = namespace(messages=[]) %}{% for message in messages %}"
        + "".join(branches)
        + "{% else %}{% set asked.messages = asked.messages + [message] %}{% endif %}{% endfor %}"
        + "{% set messages = asked.messages %}"
    )
    return ChatTemplate(_once(first, outer.source), name, needs=outer.needs, is_builtin=outer.is_builtin)


def _defaults(system_prompt: str, variables: Mapping[str, Any]) -> str:
    """Return what a template has to begin with, so that a conversation which says nothing else reads these."""
    text = ""
    for name, value in plain_data(dict(variables), "a variable of the chat template").items():
        text += f"{{% if {name} is not defined %}}{{% set {name} = {_quoted(value)} %}}{{% endif %}}"
    if system_prompt:
        message = f"{{'role': 'system', 'content': {_quoted(system_prompt)}}}"
        text += (
            "{% if not messages or messages[0].role != 'system' %}"
            f"{{% set messages = [{message}] + messages %}}{{% endif %}}"
        )
    return text


def _once(first: str, source: str) -> str:
    # A newline in between, which Jinja takes away: the template begins a line, as it did.
    first = f"{first}\n" if first else ""
    return source if source.startswith(first) else first + source


def _wrapped(expression: str, around: tuple[str, str]) -> str:
    before, after = (_quoted(text) if text else "" for text in around)
    return " ~ ".join(part for part in (before, expression, after) if part)


def _quoted(value: Any) -> str:
    """Return plain data as Jinja reads it: as JSON, but for null, and for pairs of surrogates."""
    if isinstance(value, list):
        return f"[{', '.join(map(_quoted, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_quoted(key)}: {_quoted(item)}' for key, item in value.items())}}}"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)
