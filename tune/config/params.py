"""Declaring parameters: `param`, what it records, and the checks a params dataclass runs on itself.

A recipe has one frozen dataclass of parameters. Each field is declared once with `param`, which carries all that
the command line, the checks, the help texts and the editor's schema need to know about it.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tune.config.diagnostics import Diagnostic, problem
from tune.config.typing import TypeSpec
from tune.errors import ConfigError

if TYPE_CHECKING:
    from tune.config.slots import Slot

_METADATA_KEY = "tune.param"
AGREED = "_agreed"


class ParamsError(ConfigError, TypeError, ValueError):
    """A params object cannot be used; every problem it has is in `problems` and in the message."""

    def __init__(self, problems: Iterable[Diagnostic], params_name: str = "") -> None:
        self.problems = list(problems)
        count = len(self.problems)
        head = f"{params_name or 'the parameters'}: {count} problem{'s' if count != 1 else ''}"
        super().__init__("\n".join([head, *(f"  - {problem}" for problem in self.problems)]))


@dataclass(frozen=True)
class ParamInfo:
    """All that is declared about one field of a params dataclass."""

    name: str
    spec: TypeSpec
    default: Any
    help: str = ""
    group: str = "General"
    required: bool = False
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    choices: tuple[Any, ...] = ()
    pattern: str | None = None
    pattern_help: str = ""
    short_for: str | None = None
    slot: Slot | None = None
    fixed_on_resume: bool = False

    def range_text(self) -> str:
        """The allowed range in words: "at least 1", or "" where there is none."""
        if self.above is not None and self.maximum is not None:
            return f"above {_number(self.above)} and at most {_number(self.maximum)}"
        if self.above is not None:
            return f"above {_number(self.above)}"
        if self.minimum is not None and self.maximum is not None:
            return f"between {_number(self.minimum)} and {_number(self.maximum)}"
        if self.minimum is not None:
            return f"at least {_number(self.minimum)}"
        return f"at most {_number(self.maximum)}" if self.maximum is not None else ""

    def type_text(self) -> str:
        """The type in words a person can act on."""
        if self.pattern_help:
            return f"{self.pattern_help}, or null" if self.spec.nullable else self.pattern_help
        if self.choices:
            words = "one of " + ", ".join(str(choice) for choice in self.choices)
            return f"{words} or null" if self.spec.nullable else words
        return self.spec.describe()

    def find_fault(self, value: Any, name: str = "") -> Diagnostic | None:
        """Return why a well-typed `value` is not allowed here, or None; `name` is what the user called the field."""
        if value is None:
            return None
        fields = (name or self.name,)
        if self.choices and value not in self.choices:
            return problem(f"must be {self.type_text()}, not {value!r}", fields, "not-a-choice")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            outside = (
                (self.minimum is not None and value < self.minimum)
                or (self.maximum is not None and value > self.maximum)
                or (self.above is not None and value <= self.above)
            )
            if outside:
                return problem(f"must be {self.range_text()}, not {value}", fields, "out-of-range")
        if self.pattern is not None and isinstance(value, str) and not re.fullmatch(self.pattern, value):
            shown = value if len(value) <= 80 else value[:77] + "..."
            folded = value.strip().lower().replace("gpu", "cuda")
            suggestion = folded if re.fullmatch(self.pattern, folded) else None
            wanted = f"be {self.pattern_help}" if self.pattern_help else f"match {self.pattern}"
            return problem(f"must {wanted}, not {shown!r}", fields, "bad-value", suggestion)
        return None


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else str(value)


def param(
    default: Any,
    *,
    help: str,
    group: str = "General",
    required: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: Sequence[Any] | None = None,
    pattern: str | None = None,
    pattern_help: str = "",
    short_for: str | None = None,
    slot: Slot | None = None,
    fixed_on_resume: bool = False,
) -> Any:
    """Declare one field of a params dataclass.

    Args:
        default: value where neither the file nor the command line sets one. For a required field, the null
            value of its type: it is never used.
        help: one sentence for ``--help``, with the unit where there is one.
        group: heading the field stands under in help texts.
        required: whether a config must set it.
        minimum: smallest allowed value, included.
        maximum: largest allowed value, included.
        above: lower bound that is itself not allowed.
        choices: the only allowed values.
        pattern: regular expression that a text must match as a whole.
        pattern_help: the same in words, to go on after "must be": "cpu, cuda, cuda:N or mps".
        short_for: dotted path of the component argument this field is a short form of ("optimizer.lr"). It reads as
            what the component says, whichever of the two was set. See also `agreed_values`.
        slot: what kind of component the field holds.
        fixed_on_resume: the value decides the numbers of a run, which is the same run only with the same value.
    """
    record = {
        "help": help,
        "group": group,
        "required": required,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "choices": tuple(choices or ()),
        "pattern": pattern,
        "pattern_help": pattern_help,
        "short_for": short_for,
        "slot": slot,
        "fixed_on_resume": fixed_on_resume,
    }
    if isinstance(default, (list, dict, set)):
        value: Any = dataclasses.field(
            default_factory=functools.partial(_copy_of, default), metadata={_METADATA_KEY: record}
        )
        return value
    return dataclasses.field(default=default, metadata={_METADATA_KEY: record})


def agreed_values() -> Any:
    """Declare the field `_agreed`, with which `dataclasses.replace` may change a short form or its component alone.

    It remembers what both said, as `replace` hands on all fields alike: what differs from it is what was changed.
    """
    return dataclasses.field(default=None, kw_only=True, repr=False, compare=False)


def _copy_of(default: Any) -> Any:
    return type(default)(default)


_known_fields: dict[type, dict[str, ParamInfo]] = {}


def fields_of(params_cls: type) -> dict[str, ParamInfo]:
    """Return what is declared about each field of `params_cls`, in order.

    A plain dataclass will do as well: a field without a default is then required.
    """
    if params_cls in _known_fields:
        return _known_fields[params_cls]
    try:
        hints = typing.get_type_hints(params_cls)
    except NameError:  # annotations that only a type checker can see; their text still says enough
        hints = {}
    infos = {}
    for field in dataclasses.fields(params_cls):
        if not field.init or field.name == AGREED:
            continue
        record = dict(field.metadata.get(_METADATA_KEY, {}))
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = None
            record.setdefault("required", True)
        spec = TypeSpec.from_hint(hints.get(field.name, field.type))
        infos[field.name] = ParamInfo(name=field.name, spec=spec, default=default, **record)
    _known_fields[params_cls] = infos
    return infos


def fixed_on_resume(params: Any) -> dict[str, Any]:
    """Return the parameters, by name, that must be as they were for a resumed run to be the same run."""
    return {
        name: getattr(params, name) for name, info in fields_of(type(params)).items() if info.fixed_on_resume
    }


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
    from tune.config.suggestions import nearest  # only on the way to an error

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
    if _already_checked.get():
        found = list(problems)
    else:
        # `resolve` imports this module: the checks of values live there and are only needed here and now
        from tune.config.check import check_values

        found = [*check_values(params), *problems]
    if found:
        raise ParamsError(found, type(params).__name__)
    if hasattr(params, AGREED):
        shorts = [info.name for info in fields_of(type(params)).values() if info.short_for]
        object.__setattr__(params, AGREED, {name: getattr(params, name) for name in shorts})
