"""What a single value is as a type that it is asked for: a lexeme by YAML 1.2, or a Python value."""

from __future__ import annotations

import difflib
import math
import os
import re
from typing import Any, NamedTuple

from tune.config.nodes import Node, PythonValue, Scalar, core_value, parse_float, parse_int
from tune.config.typing import TypeSpec

_YES = {"yes", "on", "y"}
_NO = {"no", "off", "n"}
_GROUPED = re.compile(r"[-+]?\d{1,3}(?:[_,']\d{3})+\Z|[-+]?\d+(?:_\d+)+\Z")
_PADDED = re.compile(r"[-+]?0\d+\Z")


class _Refused:
    """The one value that stands for "reported already"."""

    def __repr__(self) -> str:
        return "REFUSED"


REFUSED: Any = _Refused()


class Reading(NamedTuple):
    """What became of a value.

    Args:
        value: `REFUSED` where it is not of the type.
        suggestion: what was probably meant.
        reason: why it is not, to be added to the fact.
    """

    value: Any = REFUSED
    suggestion: str | None = None
    reason: str = ""


def read_scalar(node: Node, spec: TypeSpec) -> Reading:
    """Return what `node` is as a `spec`."""
    if isinstance(node, PythonValue):
        return _python_scalar(node.value, spec)
    if not isinstance(node, Scalar):
        return Reading()
    text, plain = node.text, node.style != "quoted"
    if spec.kind in ("str", "path"):
        if "\0" in text:
            return Reading(reason="a text cannot hold the NUL character")
        return Reading(text)
    text = text if node.style == "plain" else text.strip()  # `lr= 1e-4`, or "1" in quotes
    if spec.kind == "literal":
        return _choice(text, plain, spec)
    parse = {"bool": _bool, "int": _int, "float": _float}.get(spec.kind)
    if parse is None:
        return Reading()
    value, suggestion, reason = parse(text)
    if not plain and value is not REFUSED:
        return Reading(REFUSED, text, "quotes make it text; remove them")
    return Reading(value, suggestion, reason)


def _bool(text: str) -> Reading:
    value = core_value(text)
    if isinstance(value, bool):
        return Reading(value)
    lowered = text.lower()
    if lowered in _YES or text == "1" or lowered == "true":
        return Reading(suggestion="true")
    if lowered in _NO or text == "0" or lowered == "false":
        return Reading(suggestion="false")
    return Reading()


def _int(text: str) -> Reading:
    value = None if _PADDED.match(text) else parse_int(text)
    if value is not None:
        return Reading(value) if abs(value) < 2**63 else Reading(reason="it does not fit into 64 bits")
    odd = _odd_digits(text)
    number = parse_float(text) if odd is None else None
    if number is not None and math.isfinite(number) and number.is_integer() and abs(number) < 1e15:
        return Reading(REFUSED, str(int(number)), "")
    return odd or Reading()


def _float(text: str) -> Reading:
    whole = parse_int(text)
    value: float | None
    try:
        value = float(whole) if whole is not None else parse_float(text)
    except OverflowError:
        value = math.inf
    if value is not None and not _PADDED.match(text):
        return Reading(value) if math.isfinite(value) else Reading(reason="it has to be finite")
    if text.lower().lstrip("+-") in ("inf", "nan", "infinity"):
        return Reading(reason="it has to be finite")
    odd = _odd_digits(text)
    if odd is None and re.fullmatch(r"[-+]?\d+,\d+", text):
        return Reading(REFUSED, text.replace(",", "."), "the decimal sign is a point")
    if odd is None and re.fullmatch(r"[-+]?[\d.]+\s*%", text):
        return Reading(reason="write it as a fraction of one")
    return odd or Reading()


def _odd_digits(text: str) -> Reading | None:
    """What to write for a number that other tools would read: 010, or 1_000."""
    if _PADDED.match(text):
        sign = "-" if text.startswith("-") else ""
        plain = sign + (text.lstrip("+-").lstrip("0") or "0")
        return Reading(REFUSED, plain, "a leading zero means octal to some readers")
    if _GROUPED.match(text):
        return Reading(REFUSED, re.sub(r"[_,']", "", text), "digits are not grouped in YAML")
    return None


def _choice(text: str, plain: bool, spec: TypeSpec) -> Reading:
    value = core_value(text) if plain else text
    for choice in spec.choices:
        if choice == text or (type(choice) is type(value) and choice == value):
            return Reading(choice)
    names = {str(choice).lower(): str(choice) for choice in spec.choices}
    synonym = _SYNONYMS.get(text.lower(), text.lower())
    close = difflib.get_close_matches(synonym, names, n=1, cutoff=0.6)
    return Reading(REFUSED, names[close[0]] if close else None, "")


# What other tools call the precisions; only ever a suggestion.
_SYNONYMS = {
    "bfloat16": "bf16",
    "torch.bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "torch.float16": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "torch.float32": "fp32",
    "full": "fp32",
}


def _python_scalar(value: Any, spec: TypeSpec) -> Reading:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if spec.kind == "bool" and isinstance(value, bool):
        return Reading(value)
    if spec.kind == "int" and is_number and isinstance(value, int):
        return Reading(value)
    if spec.kind == "float" and is_number:
        if isinstance(value, int) and abs(value) > 10**300:
            return Reading(reason="it has to be finite")
        return Reading(float(value)) if math.isfinite(value) else Reading(reason="it has to be finite")
    if spec.kind in ("str", "path") and isinstance(value, (str, os.PathLike)):
        if "\0" in str(value):
            return Reading(reason="a text cannot hold the NUL character")
        return Reading(str(value) if spec.kind == "str" else value)
    if spec.kind == "literal":
        for choice in spec.choices:
            if type(choice) is type(value) and choice == value:
                return Reading(choice)
        return _choice(value, False, spec) if isinstance(value, str) else Reading()
    return Reading()
