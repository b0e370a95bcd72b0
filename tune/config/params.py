"""What a params dataclass is made with: `param` declares a field, `check_params` checks the object."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tune.config.check import check_tree, cross_check
from tune.config.diagnostics import DEFAULT, PYTHON, Diagnostic, problem
from tune.config.fields import (
    AGREED,
    ParamInfo,
    agreed_values,
    fields_of,
    fixed_on_resume,
    given_fields,
    param,
)
from tune.config.nodes import MappingNode, from_python
from tune.config.scalars import REFUSED
from tune.config.short_forms import forget_argument
from tune.config.suggestions import nearest
from tune.errors import ConfigError

__all__ = [
    "ParamInfo",
    "ParamsError",
    "agreed_values",
    "building_from_checked_values",
    "check_params",
    "fields_of",
    "fixed_on_resume",
    "given_fields",
    "param",
    "refuse_unknown",
]


class ParamsError(ConfigError, TypeError, ValueError):
    """A params object cannot be used; every problem it has is in `problems` and in the message."""

    def __init__(self, problems: Iterable[Diagnostic], params_name: str = "") -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{params_name or 'the parameters'}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


# Set while `resolve` builds an object from values it has already checked one by one.
_already_checked: contextvars.ContextVar[bool] = contextvars.ContextVar("already_checked", default=False)


@contextlib.contextmanager
def building_from_checked_values() -> Iterator[None]:
    """Within this block `check_params` leaves the checks to its caller, who has made them."""
    token = _already_checked.set(True)
    try:
        yield
    finally:
        _already_checked.reset(token)


def refuse_unknown(params_cls: type, names: Iterable[str]) -> None:
    """Refuse names that are no fields of a params dataclass.

    Raises:
        ParamsError: there are some; each with the field that may be meant.
    """
    fields = fields_of(params_cls)
    found = []
    for name in names:
        if name not in params_cls.__dataclass_fields__:  # type: ignore[attr-defined]  # it is a dataclass
            close = nearest(name, fields)
            hint = f"; did you mean {close}?" if close else ""
            found.append(problem(f"is no parameter{hint}", (name,), "unknown-key", close))
    if found:
        raise ParamsError(found, params_cls.__name__)


def check_params(params: Any, problems: Iterable[Diagnostic] = ()) -> None:
    """Check and normalise a params object; call it at the end of `__post_init__`.

    Names and mappings in component fields become `Component`s, short forms move into the component they
    speak of, and what is missing, wrongly typed, out of range or inconsistent is collected. If the object has
    a method `cross_checks`, its problems are added once the fields concerned are right on their own.

    Args:
        params: the object under construction (frozen dataclasses are fine).
        problems: further problems the caller has found.

    Raises:
        ParamsError: there is at least one problem; all are listed.
    """
    found = [*([] if _already_checked.get() else _check_values(params)), *problems]
    if found:
        raise ParamsError(found, type(params).__name__)
    if hasattr(params, AGREED):
        shorts = [info.name for info in fields_of(type(params)).values() if info.short_for]
        object.__setattr__(params, AGREED, {name: getattr(params, name) for name in shorts})


def _check_values(params: Any) -> list[Diagnostic]:
    """Check a params object built in Python and normalise its fields in place.

    Returns:
        every problem found; the object is only usable if there is none.
    """
    params_cls: type = type(params)
    infos = fields_of(params_cls)
    problems: list[Diagnostic] = []

    def report(item: Diagnostic) -> None:
        if item.severity == "error":
            problems.append(item)

    entries = {}
    # What short forms and components said before `dataclasses.replace` changed one of them: the other one follows.
    agreed: Mapping[str, Any] = getattr(params, AGREED, None) or {}
    for info in infos.values():
        value = getattr(params, info.name)
        if info.required and isinstance(value, type(info.default)) and value == info.default:
            continue
        if value is info.default:
            continue
        is_handed_on = info.short_for is not None and info.name in agreed and value == agreed[info.name]
        entries[info.name] = from_python(value, DEFAULT if is_handed_on else PYTHON)
    for info in infos.values():
        slot, _, argument = (info.short_for or "").partition(".")
        if slot in entries and agreed.get(info.name) not in (None, getattr(params, info.name)):
            entries[slot] = forget_argument(entries[slot], argument, agreed[info.name])
    checked = check_tree(MappingNode(PYTHON, entries), infos, report, whole=PYTHON)
    found = [*dict.fromkeys(problems), *cross_check(params_cls, checked, infos)]
    for info in infos.values():
        value = checked.values.get(info.name, REFUSED)
        if value is not REFUSED:
            object.__setattr__(params, info.name, value)
    return found
