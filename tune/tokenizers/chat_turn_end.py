"""The special token by which a chat template ends a turn, found by asking it for a short conversation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tune.errors import DataError
from tune.tokenizers.special_token_escape import Conversation, SpecialTokenEscaper

if TYPE_CHECKING:
    from tune.tokenizers.chat_template_render import ChatTemplate

_PROBE = "Tune asks for an answer"


def end_of_turn(
    template: ChatTemplate, escaper: SpecialTokenEscaper, names: Mapping[str, str]
) -> frozenset[int]:
    """Return the id of the special token by which a template ends an answer; nothing where it has none.

    Args:
        template: is asked to write a short conversation.
        escaper: knows the tokenizer's special tokens.
        names: the tokenizer's `special_token_names`.
    """
    if escaper not in template.ends_of_turn:
        rows: list[dict[str, Any]] = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _PROBE},
            {"role": "user", "content": "?"},
        ]
        try:
            probe = Conversation(template, escaper, rows, None, {}, names)
            probe.want([(3, False)])
            text = probe.render(2)
        except DataError:
            return frozenset()
        tail = text[text.rfind(_PROBE) + len(_PROBE) :] if _PROBE in text else ""
        tokens = _closing_tokens(probe, tail) if tail else []
        template.ends_of_turn[escaper] = frozenset(escaper.ids[token.group()] for token in tokens[-1:])
    return template.ends_of_turn[escaper]


def _closing_tokens(probe: Conversation, tail: str) -> list[re.Match[str]]:
    """Return the special tokens that end an answer, whatever follows it.

    Args:
        probe: a question, an answer and another question.
        tail: what is written after the answer where it is the last message.
    """
    tokens = probe.tokens(tail)
    try:
        followed = probe.render(3)
    except DataError:  # a template may refuse a conversation without a last answer
        return tokens[:1]
    followed = followed[followed.rfind(_PROBE) + len(_PROBE) :]
    shared = [token for token in tokens if followed.startswith(tail[: token.end()])]
    rest = tail[shared[-1].end() :].lstrip() if shared else ""
    # Text behind a token is the role that it opens the next turn for.
    is_opening = rest and not any(token.start() == len(tail) - len(rest) for token in tokens)
    return tokens[:1] if is_opening or not shared else shared
