"""What the flags on a message say of how much it is learnt, with the names that several tools have for it.

`weight` is OpenAI's, `train` and `train_detail` (also `training`, `training_detail`) are axolotl's, `loss` and
`loss_scale` are ms-swift's, `loss_weight` is LLaMA-Factory's, `masked` is torchtune's. A weight only scales what is
learnt anyway; the others also make a message learnt that its role would leave out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune.data.rows import describe
from tune.errors import DataError
from tune.tokenizers.messages import MAX_WEIGHT, WeightedSpan, is_weight

_DETAIL_KEYS = ("train_detail", "training_detail")
_FLAG_KEYS = ("weight", "train", "training", "loss", "masked", "loss_scale", "loss_weight")
_SCALE_KEYS = ("loss_scale", "loss_weight")
# Keys of a message that are read here.
FLAG_KEYS = (*_FLAG_KEYS, *_DETAIL_KEYS)
_ROW_SAYS = "one of them has to go"


@dataclass(frozen=True)
class _Verdict:
    """What one flag says.

    Args:
        text: the flag itself, for errors.
        is_learnt: whether the tokens are learnt.
        scale: what their loss is multiplied by, None where only yes or no is said.
        decides: whether the message is learnt by this, whatever its role.
    """

    text: str
    is_learnt: bool
    scale: float | None
    decides: bool


def read_weight(
    flags: Mapping[str, Any],
    is_learnt: bool,
    where: str,
    content: str = "",
    parts: Sequence[tuple[str, float | None]] = (),
) -> tuple[float, tuple[WeightedSpan, ...]]:
    """Return what the loss of a message's tokens is multiplied by, and parts of its content with another weight.

    Args:
        flags: the message as the row has it; null is not given.
        is_learnt: whether a message of its role is learnt where nothing else is said.
        where: the message's place, for errors.
        content: what is said.
        parts: the texts that the content was joined of, each with what its own flags say, see `read_part_weight`.

    Raises:
        DataError: a flag has another value than it may have, flags contradict each other, or one has no effect.
    """
    verdicts = _read_flags(flags, where)
    details = _read_details(flags, where, content)
    if details is not None:
        verdicts.append(_Verdict(f"{details[0]}", bool(details[1]), None, True))
    _refuse_contradictions(verdicts, where)
    if any(not verdict.is_learnt for verdict in verdicts):
        return 0.0, ()
    scale = next((verdict.scale for verdict in verdicts if verdict.scale is not None), 1.0)
    decided = any(verdict.decides for verdict in verdicts)
    if not (is_learnt or decided):
        odd = [v.text for v in verdicts if v.scale not in (None, 1.0)]
        odd += [f"a part with weight {weight}" for _, weight in parts if weight not in (None, 0.0, 1.0)]
        if odd:
            raise DataError(
                f"{where} has {odd[0]}, and messages of its role are not learnt: set dataset.train_on_input=true, or "
                "take it out of the data"
            )
        return 0.0, ()
    if details is not None:
        return scale, _spans_of_details(details[1], len(content), scale)
    spans = _spans_of_parts(parts, scale)
    if parts and spans and all(weight == 0 for text, weight in parts if text.strip()):
        return 0.0, ()
    if decided and not is_learnt and not spans:
        spans = ((0, len(content), scale),)  # what the template writes around it is not asked for
    return scale, spans


def read_part_weight(part: Mapping[str, Any], where: str) -> float | None:
    """Return what a part of a content says its own loss is multiplied by, None where it says nothing.

    Raises:
        DataError: a flag has another value than it may have, or flags contradict each other.
    """
    verdicts = _read_flags(part, where)
    _refuse_contradictions(verdicts, where)
    if not verdicts:
        return None
    if any(not verdict.is_learnt for verdict in verdicts):
        return 0.0
    return next((verdict.scale for verdict in verdicts if verdict.scale is not None), 1.0)


def _read_flags(flags: Mapping[str, Any], where: str) -> list[_Verdict]:
    found = []
    for key in _FLAG_KEYS:
        value = flags.get(key)
        if value is None:
            continue
        text = f"{key}: {json.dumps(value)[:40]}" if isinstance(value, bool | int | float) else ""
        if isinstance(value, bool) and key not in ("weight", *_SCALE_KEYS):
            found.append(_Verdict(text, value != (key == "masked"), None, True))
            continue
        if key in ("train", "training", "masked"):
            raise DataError(f"{where} has {describe(value)} as {key}, expected true or false")
        highest = MAX_WEIGHT if key in _SCALE_KEYS else 1
        if not is_weight(value) or value > highest:
            either = "true, false or " if key == "loss" else ""
            raise DataError(
                f"{where} has {describe(value)} as {key}, expected {either}a number from 0 to {highest}"
            )
        found.append(_Verdict(text, value > 0, float(value), key != "weight"))
    return found


def _refuse_contradictions(verdicts: Sequence[_Verdict], where: str) -> None:
    for verdict in verdicts:
        for other in verdicts:
            differ = verdict.scale is not None and other.scale is not None and verdict.scale != other.scale
            if verdict.is_learnt != other.is_learnt or differ:
                raise DataError(
                    f"{where} has {verdict.text} and {other.text}, which contradict each other: {_ROW_SAYS}"
                )


def _read_details(
    flags: Mapping[str, Any], where: str, content: str
) -> tuple[str, list[tuple[int, int]]] | None:
    """Return the places [start, end) that are to be learnt by axolotl's details, and what they are called.

    Their `end_offset` is that of the last character.
    """
    given = [key for key in _DETAIL_KEYS if flags.get(key) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise DataError(f"{where} has {given[0]} and {given[1]}: {_ROW_SAYS}")
    details = flags[given[0]]
    if not isinstance(details, list):
        raise DataError(f"{where} has {describe(details)} as {given[0]}, expected a list of objects")
    places = []
    for detail in details:
        start, end, learnt = (_get(detail, name) for name in ("begin_offset", "end_offset", "train"))
        if not (_is_int(start) and _is_int(end) and isinstance(learnt, bool)):
            raise DataError(
                f"{where} has {describe(detail)} in {given[0]}, expected begin_offset and end_offset, two whole "
                "numbers, and train, true or false"
            )
        if not 0 <= start <= end <= len(content) or start >= max(len(content), 1):
            raise DataError(
                f"{where} has {given[0]} from character {start} to {end}, and its content has {len(content)} characters"
            )
        if learnt:
            places.append((start, min(end + 1, len(content))))
    return f"{given[0]} with {'some' if places else 'no'} train: true", sorted(places)


def _get(detail: Any, name: str) -> Any:
    return detail.get(name) if isinstance(detail, Mapping) else None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _spans_of_details(
    places: Sequence[tuple[int, int]], length: int, scale: float
) -> tuple[WeightedSpan, ...]:
    """Return spans over all of a content: `scale` in the places, which are in order and may overlap, and 0 between."""
    spans: list[WeightedSpan] = []
    done = 0
    for start, end in places:
        if start > done:
            spans.append((done, start, 0.0))
        if end > done:
            spans.append((max(start, done), end, scale))
            done = end
    return (*spans, (done, length, 0.0))


def _spans_of_parts(parts: Sequence[tuple[str, float | None]], scale: float) -> tuple[WeightedSpan, ...]:
    spans: list[WeightedSpan] = []
    start = 0
    for text, weight in parts:
        if weight is not None and text:
            spans.append((start, start + len(text), weight * scale))
        start += len(text)
    return tuple(spans)
