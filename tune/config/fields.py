"""Declaring parameters: `param`, what it records, and how that is read back from a params dataclass.

A recipe has one frozen dataclass of parameters. Each field is declared once with `param`, which carries all that
the command line, the checks, the help texts and the editor's schema need to know about it.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tune.config.argument_ranges import Bounds
from tune.config.diagnostics import Diagnostic, problem
from tune.config.slots import Slot
from tune.config.typing import TypeSpec

_METADATA_KEY = "tune.param"
AGREED = "_agreed"
_GIVEN = "_given"


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
    pattern: str | None = None
    pattern_help: str = ""
    short_for: str | None = None
    slot: Slot | None = None
    inherits: str | None = None
    fixed_on_resume: bool = False

    @property
    def bounds(self) -> Bounds:
        """The allowed range."""
        return Bounds(self.minimum, self.maximum, self.above)

    def type_text(self) -> str:
        """The type in words a person can act on."""
        if self.pattern_help:
            return f"{self.pattern_help}, or null" if self.spec.nullable else self.pattern_help
        return self.spec.describe()

    def find_fault(self, value: Any, name: str = "") -> Diagnostic | None:
        """Return why a well-typed `value` is not allowed here, or None; `name` is what the user called the field."""
        if value is None:
            return None
        fields = (name or self.name,)
        outside = self.bounds.find_fault(value)
        if outside:
            return problem(outside, fields, "out-of-range")
        if self.pattern is not None and isinstance(value, str) and not re.fullmatch(self.pattern, value):
            shown = value if len(value) <= 80 else value[:77] + "..."
            folded = value.strip().lower().replace("gpu", "cuda")
            suggestion = folded if re.fullmatch(self.pattern, folded) else None
            wanted = f"be {self.pattern_help}" if self.pattern_help else f"match {self.pattern}"
            return problem(f"must {wanted}, not {shown!r}", fields, "bad-value", suggestion)
        return None


def param(
    default: Any,
    *,
    help: str,
    group: str = "General",
    required: bool = False,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    pattern: str | None = None,
    pattern_help: str = "",
    short_for: str | None = None,
    slot: Slot | None = None,
    inherits: str | None = None,
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
        pattern: regular expression that a text must match as a whole.
        pattern_help: the same in words, to go on after "must be": "cpu, cuda, cuda:N or mps".
        short_for: dotted path of the component argument this field is a short form of ("optimizer.lr"). It reads as
            what the component says, whichever of the two was set. See also `agreed_values`.
        slot: what kind of component the field holds.
        inherits: the field whose component, and arguments, stand for those that a mapping of this one leaves out.
        fixed_on_resume: the value decides the numbers of a run, which is the same run only with the same value.
    """
    metadata = {_METADATA_KEY: {name: value for name, value in locals().items() if name != "default"}}
    if isinstance(default, (list, dict, set)):
        return dataclasses.field(default_factory=functools.partial(copy.copy, default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def agreed_values() -> Any:
    """Declare the field `_agreed`, with which `dataclasses.replace` may change a short form or its component alone.

    It remembers what both said, as `replace` hands on all fields alike: what differs from it is what was changed.
    """
    return dataclasses.field(default=None, kw_only=True, repr=False, compare=False)


def other_spelling(path: str, infos: Mapping[str, ParamInfo]) -> str | None:
    """Return the argument that the field `path` is a short form of, or the short form of the argument `path`."""
    own = infos[path].short_for if path in infos else None
    return own or next((info.name for info in infos.values() if info.short_for == path), None)


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


def note_given(params: Any, names: Iterable[str]) -> None:
    """Remember which fields of `params` were set by a file or a command line."""
    object.__setattr__(params, _GIVEN, frozenset(names))


def given_fields(params: Any) -> frozenset[str]:
    """Return the names of the fields that were set; of an object built in Python, of those other than their default.

    A field that is set to null counts as one that was not.
    """
    infos = fields_of(type(params))
    given = getattr(params, _GIVEN, None)
    if given is None:
        given = frozenset(name for name, info in infos.items() if getattr(params, name) != info.default)
    return frozenset(name for name in given if name in infos and getattr(params, name) is not None)


def fixed_on_resume(params: Any) -> dict[str, Any]:
    """Return the parameters, by name, that must be as they were for a resumed run to be the same run."""
    return {
        name: getattr(params, name) for name, info in fields_of(type(params)).items() if info.fixed_on_resume
    }
