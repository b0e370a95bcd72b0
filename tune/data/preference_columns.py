"""Which columns hold a prompt and its two answers, or an answer and its verdict; and transcripts in one text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tune.data.columns import CHAT_NAMES, PREFERENCE_PAIRS, check_exists, known_part, list_names
from tune.errors import ConfigError, DataError

_PROMPTS = ("prompt", "question", "instruction", "input", *CHAT_NAMES)
_MARGIN = "margin"
_ANSWERS = ("completion", "response", "output", "answer")
# TRL's, LLaMA-Factory's.
VERDICTS = ("label", "kto_tag")
_PARTS = {
    "pairs": ("prompt", "context", "chosen", "rejected", "margin", "system", "tools"),
    "judged": ("prompt", "context", "completion", "label", "system", "tools"),
}
# HH-RLHF writes a conversation as one text.
_TURN = re.compile(r"\n\n(Human|Assistant):[ \t]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class PreferenceColumns:
    """Names of the columns that hold a prompt, further text of it, and two answers or one with a verdict.

    `margin`: by how much the chosen answer is the better one.
    """

    prompt: str | None
    chosen: str | None = None
    rejected: str | None = None
    completion: str | None = None
    label: str | None = None
    margin: str | None = None
    context: str | None = None
    system: str | None = None
    tools: str | None = None

    def __str__(self) -> str:
        before = " + ".join(name for name in (self.prompt, self.context) if name)
        answers = f"{self.chosen} / {self.rejected}" if self.chosen else f"{self.completion or 'answer'}"
        verdict = f" judged by {self.label}" if self.label else ""
        verdict += f" by {self.margin}" if self.margin else ""
        return f"{before + ' -> ' if before else ''}{answers}{verdict}"


def find_preference_columns(
    columns: Sequence[str], column_map: Mapping[str, str] | None = None, source: str = "the data"
) -> PreferenceColumns:
    """Return which columns hold a prompt and its two answers.

    Args:
        columns: names in the data.
        column_map: `prompt`, `context`, `chosen`, `rejected`, `margin`, `system`, `tools`, each to its column; those
            left out are recognised by their names.
        source: what errors call the data.

    Raises:
        ConfigError: the map names unknown parts or columns.
        DataError: no pair of answers is known by name, or several are.
    """
    told = _read_map(columns, column_map, "pairs")
    pairs = [pair for pair in PREFERENCE_PAIRS if set(pair) <= set(columns)]
    if not {"chosen", "rejected"} <= set(told):
        if len(pairs) != 1:
            found = "several pairs of columns" if pairs else "no columns"
            raise DataError(
                f"{found} of {source} could hold the chosen and the rejected answers: found {list_names(columns)}. Say "
                "which with dataset.column_map.chosen=COLUMN dataset.column_map.rejected=COLUMN; known without a map "
                f"are {', '.join('/'.join(pair) for pair in PREFERENCE_PAIRS)}"
            )
        told = {"chosen": pairs[0][0], "rejected": pairs[0][1], **told}
    if _MARGIN in columns and _MARGIN not in told.values():
        told = {"margin": _MARGIN, **told}
    return PreferenceColumns(**_with_prompt(columns, told))


def find_judged_columns(
    columns: Sequence[str], column_map: Mapping[str, str] | None = None, source: str = "the data"
) -> PreferenceColumns:
    """Return which columns hold a prompt, an answer and whether it is good; or two answers, one good and one bad.

    Args:
        columns: names in the data.
        column_map: `prompt`, `context`, `completion`, `label`, `system`, `tools`, each to its column.
        source: what errors call the data.

    Raises:
        ConfigError: the map names unknown parts or columns.
        DataError: none is known by name.
    """
    told = _read_map(columns, column_map, "judged")
    if not column_map and any(set(pair) <= set(columns) for pair in PREFERENCE_PAIRS):
        return replace(find_preference_columns(columns, None, source), margin=None)
    verdicts = [name for name in VERDICTS if name in columns]
    if "label" not in told:
        if len(verdicts) != 1:
            raise DataError(
                f"{'several columns' if verdicts else 'no column'} of {source} could say whether an answer is good: "
                f"found {list_names(columns)}. Name it with dataset.column_map.label=COLUMN; known without a map are "
                f"{', '.join(VERDICTS)}, with true or false"
            )
        told["label"] = verdicts[0]
    if "completion" not in told:
        answers = [name for name in _ANSWERS if name in columns]
        whole = [name for name in CHAT_NAMES if name in columns]
        if len(answers) > 1 or not (answers or whole):
            raise DataError(
                f"{'several columns' if answers else 'no column'} of {source} could hold the answer: found "
                f"{list_names(columns)}. Name it with dataset.column_map.completion=COLUMN"
            )
        if answers:
            told["completion"] = answers[0]
    return PreferenceColumns(**_with_prompt(columns, told))


def read_transcript(text: str) -> list[dict[str, str]] | None:
    """Return the turns of a text such as "\\n\\nHuman: ...\\n\\nAssistant: ..."; None where it is none.

    A text that ends where the assistant is to speak has no such turn.
    """
    parts = _TURN.split(text if text.startswith("\n\n") else f"\n\n{text.lstrip()}")
    if len(parts) < 3 or parts[0].strip():
        return None
    turns = [
        {"role": _ROLES[who], "content": said.strip()}
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return turns


def _read_map(columns: Sequence[str], column_map: Mapping[str, str] | None, kind: str) -> dict[str, str]:
    told = dict(column_map or {})
    for part, column in told.items():
        if part not in _PARTS[kind]:
            raise ConfigError(f"dataset.column_map has no part {part!r}; parts are {', '.join(_PARTS[kind])}")
        check_exists(column, columns, f"dataset.column_map.{part}")
    if len(set(told.values())) < len(told):
        raise ConfigError(f"dataset.column_map gives one column to two parts: {told}")
    return told


def _with_prompt(columns: Sequence[str], told: dict[str, str]) -> dict[str, str | None]:
    """Return the parts with the prompt and what comes before it; a conversation may hold its own."""
    used = set(told.values())
    parts: dict[str, str | None] = {"prompt": None, **told}
    free = [name for name in _PROMPTS if name in columns and name not in used]
    if "prompt" not in told and free:
        parts["prompt"] = free[0]
        if "context" not in told and free[0] in ("instruction", "question") and "input" in free:
            parts["context"] = "input"
    for part in ("system", "tools"):
        if part not in told:
            parts[part] = known_part(columns, part)
    return parts
