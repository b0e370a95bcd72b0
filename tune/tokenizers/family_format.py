"""How the tokenizer builders of a family write conversations: as torchtune's builders of the same names do.

A tokenizer that is found by itself (`auto`) has no such format: each dataset then decides by itself.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from tune.tokenizers.base import BaseTokenizer
from tune.tokenizers.chat_template import template_for
from tune.tokenizers.chat_template_render import ChatTemplate
from tune.tokenizers.protocol import Tokenizer
from tune.tokenizers.templates import (
    AnyTemplate,
    ChatMLTemplate,
    Llama2ChatTemplate,
    PlainTemplate,
    PromptTemplate,
    get_prompt_template,
)
from tune.tokenizers.trained_template import wrap_contents

T = TypeVar("T", bound=BaseTokenizer)
# Formats that are a prompt template like any other; the rest stand around whatever a prompt template writes.
_REPLACED = ("llama2_chat", "mistral", "plain")
_WHOLE_CONVERSATIONS = (ChatTemplate, ChatMLTemplate, Llama2ChatTemplate, PlainTemplate)


def with_family_format(tokenizer: T, name: str) -> T:
    """Return a tokenizer that knows how its family writes conversations.

    Args:
        tokenizer: changed in place. If it was given a `prompt_template`, that one goes before the family's format, or
            into it: texts around what is asked stand inside of a turn.
        name: the format, as `get_prompt_template` knows it; "plain" for a family that has none.
    """
    chosen = tokenizer.prompt_template
    if chosen is None:
        # ChatML with special tokens where the tokenizer has them; what others lack is said when they are needed.
        own = get_prompt_template(name)
        tokenizer.family_template = template_for(own, tokenizer) if name == "chatml" else own
    elif name in _REPLACED or isinstance(chosen, _WHOLE_CONVERSATIONS):
        tokenizer.family_template = chosen
    else:
        own = template_for(get_prompt_template(name), tokenizer)
        tokenizer.prompt_template = tokenizer.family_template = place_inside(chosen, own)
    return tokenizer


def template_of(tokenizer: Tokenizer) -> AnyTemplate | None:
    """Return how a tokenizer asks for conversations to be written: as its builder's family, or as it was told."""
    return getattr(tokenizer, "family_template", None) or tokenizer.prompt_template


def conversation_template_of(tokenizer: Tokenizer) -> AnyTemplate | None:
    """Return the same for whole conversations: where its builder's family writes no turns, as its checkpoint does."""
    template = template_of(tokenizer)
    if tokenizer.prompt_template is None and (template is None or isinstance(template, PlainTemplate)):
        return tokenizer.chat_template or template
    return template


def family_template_of(tokenizer: Tokenizer) -> AnyTemplate | None:
    """Return how the family of a tokenizer's builder writes conversations, None for one that was found by itself."""
    found: AnyTemplate | None = getattr(tokenizer, "family_template", None)
    return found


def place_inside(inner: PromptTemplate, outer: AnyTemplate) -> AnyTemplate:
    """Return a template that writes what `inner` puts around a message inside of the turns of `outer`."""
    name = f"{inner.name} in {outer.name}"
    if isinstance(outer, ChatTemplate):
        return wrap_contents(inner, outer, name)
    if isinstance(outer, PlainTemplate):
        return inner
    before, after = outer.user
    asked = inner.user[0], inner.user[1] + inner.assistant[0]
    if isinstance(outer, Llama2ChatTemplate):
        asked = asked[0], asked[1].rstrip()
    return replace(outer, user=(before + asked[0], asked[1] + after), name=name)
