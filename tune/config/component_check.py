"""Judging the component a configuration names: does it exist, may it be used, does it fit, what does it take."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tune.config.component_fit import (
    areas,
    claim_supplied,
    is_spelt_like,
    judge_kind,
    judge_nested,
    with_article,
)
from tune.config.diagnostics import Diagnostic
from tune.config.foreign_names import foreign_names
from tune.config.lookup import NotFound, find_definition, find_module_at, list_submodules, public_names
from tune.config.signatures import Signature, signature_of
from tune.config.slots import Slot
from tune.config.source import Definition, read_own_names
from tune.config.suggestions import fold
from tune.config.trust import is_dotted_name, is_user_trusted, judge_definition, judge_name, lies_within

TORCHTUNE_PREFIX = "torchtune."
RENAMED = "renamed-package"
# What a name has besides ours that says who implements it, or what it is.
_DECORATION = re.compile("(torch|fused|hf|apex|xla|npu|optimizer|scheduler|schedule|loss|dataset| )*")


@dataclass(frozen=True)
class ResolvedName:
    """What a component's name turned out to be.

    Args:
        path: full dotted path, "" where the name could not be resolved.
        signature: its arguments, or None where they are not known (an error, or not installed here).
        errors: why it cannot be used; without a position, which the caller knows.
        warnings: what the user should know.
        supplied: arguments the recipe passes itself; a config must not set them.
        defaults: arguments the recipe passes where the config does not set them.
    """

    path: str
    signature: Signature | None = None
    errors: tuple[Diagnostic, ...] = ()
    warnings: tuple[Diagnostic, ...] = ()
    supplied: frozenset[str] = frozenset()
    defaults: frozenset[str] = frozenset()


def resolve_component(name: str, slot: Slot | None = None) -> ResolvedName:
    """Return what component `name` is, without importing it.

    Args:
        name: a short name (needs a slot) or a dotted path, as the configuration has it.
        slot: the place it was named for; None for a component nested in another one's arguments.
    """
    if name.startswith(TORCHTUNE_PREFIX):
        renamed = "tune." + name.removeprefix(TORCHTUNE_PREFIX)
        resolved = resolve_component(renamed, slot)
        if resolved.errors and slot is not None:
            # Names moved between torchtune's releases (utils to training, modules to training.lr_schedulers).
            last = name.split(".")[-1]
            matches = (_match(last, names) for _, names in _namespaces(slot))  # AlpacaDataset: alpaca_dataset
            by_last_part = _resolve_short_name(next(filter(None, matches), last), slot)
            resolved = resolved if by_last_part.errors else by_last_part
        path = resolved.path or renamed
        notice = Diagnostic(RENAMED, "", f"{name} is read as {path}", suggestion=path)
        return replace(resolved, warnings=(notice, *resolved.warnings))
    if "." in name:
        return _resolve_path(name, slot)
    if slot is None:
        refused = None if is_dotted_name(name) else judge_name(name)
        message = f"{name!r} is not a dotted path; inside another component only those are understood"
        return _failed(refused or _unknown(message))
    return _resolve_short_name(name, slot)


def find_trusted(path: str) -> Definition | NotFound | Diagnostic:
    """Return the definition that dotted `path` leads to, why there is none, or why it may not be used."""
    refused = judge_name(path)
    found = refused or find_definition(path)
    return (judge_definition(found.path, path) or found) if isinstance(found, Definition) else found


def list_components(slot: Slot) -> dict[str, str]:
    """Return the short names that fit `slot`, each with the full path it stands for, in the order of the slot."""
    listed: dict[str, str] = {}
    for namespace, names in _namespaces(slot):
        for name in names:
            path = f"{namespace}.{name}"
            if is_spelt_like(name, slot) and not _resolve_path(path, slot).errors:
                listed.setdefault(_shorten(name, slot), path)
    return listed


def _unknown(message: str, suggestion: str | None = None) -> Diagnostic:
    return Diagnostic("unknown-component", "", message, suggestion=suggestion)


def _failed(*errors: Diagnostic, path: str = "") -> ResolvedName:
    return ResolvedName(path, errors=errors)


def _resolve_short_name(name: str, slot: Slot) -> ResolvedName:
    if not name:
        return _failed(_unknown(f"no {slot.kind} is named"))
    refused = None if is_dotted_name(name) else judge_name(name)
    if refused is not None:
        return _failed(refused)
    first_failure: ResolvedName | None = None
    for pattern in slot.patterns:
        for namespace, names in _namespaces(slot):
            match = name if pattern == "{}" else _match(pattern.format(name), names)
            if match not in names:
                continue
            resolved = _resolve_path(f"{namespace}.{match}", slot)
            if not resolved.errors:
                return resolved
            first_failure = first_failure or resolved
    return first_failure or _failed(_unknown_short_name(name, slot))


def _match(name: str, names: tuple[str, ...]) -> str | None:
    if name in names:  # text_completion_dataset rather than TextCompletionDataset
        return name
    return next((candidate for candidate in names if fold(candidate) == fold(name)), None)


def _namespaces(slot: Slot) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the modules in which `slot` looks names up, each with the names it offers; read only as far as asked."""
    for namespace in slot.namespaces:
        base = find_module_at(namespace.removesuffix(".*"))
        if base is None:
            continue
        if not namespace.endswith(".*"):
            yield namespace, public_names(base)
            continue
        for name in list_submodules(base):
            module = find_module_at(f"{base.name}.{name}")
            if module is not None:
                names = public_names(module) if module.is_package else read_own_names(module)
                yield module.name, names


def _unknown_short_name(name: str, slot: Slot) -> Diagnostic:
    suggestion = _nearest(name, slot)
    places = ", ".join(slot.namespaces)
    missing = [place for place in slot.namespaces if find_module_at(place.split(".")[0]) is None]
    hint = f"; did you mean {suggestion}?" if suggestion else ""
    if missing:
        hint += (
            f" ({missing[0].split('.')[0]} is not installed here: name what lies in it as {missing[0]}.NAME)"
        )
    return _unknown(f"no {slot.kind} called {name!r} in {places}{hint}", suggestion=suggestion)


def _nearest(name: str, slot: Slot) -> str | None:
    """Return the short name in `slot` nearest to what was written, or None."""
    ours = foreign_names().components.get(slot.kind, {})
    if name.lower() in ours:
        return ours[name.lower()] or None
    by_folded: dict[str, str] = {}
    for _, names in _namespaces(slot):
        for candidate in names:
            if is_spelt_like(candidate, slot):
                short = _shorten(candidate, slot)
                by_folded.setdefault(fold(short), short)
                by_folded.setdefault(fold(candidate), short)
    last = fold(name.split(".")[-1])
    for close in difflib.get_close_matches(last, by_folded, n=3, cutoff=0.7):
        if not resolve_component(by_folded[close], slot).errors:
            return by_folded[close]
    # Other tools decorate the name: adamw_torch_fused. What else is in it may be another thing: galore_adamw.
    inside = [
        key
        for key in by_folded
        if len(key) > 3 and key in last and _DECORATION.fullmatch(last.replace(key, " ", 1))
    ]
    for key in sorted(inside, key=len, reverse=True):
        if not resolve_component(by_folded[key], slot).errors:
            return by_folded[key]
    return None


def _shorten(name: str, slot: Slot) -> str:
    """Return the shortest spelling of `name` that `slot` understands."""
    for pattern in slot.patterns[1:]:
        before, _, after = pattern.partition("{}")
        if name.startswith(before) and name.endswith(after) and len(name) > len(before + after):
            short = name[len(before) : len(name) - len(after)]
            return short.lower()
    return name


def _resolve_path(path: str, slot: Slot | None) -> ResolvedName:
    found = find_trusted(path)
    if isinstance(found, Diagnostic):
        return _failed(found)
    if isinstance(found, NotFound):
        return _explain_not_found(path, found, slot)
    signature = signature_of(found)
    misfit = judge_nested(path, signature) if slot is None else judge_kind(path, signature, slot)
    if misfit is not None:
        if slot is not None and not lies_within(path, areas(slot)):
            misfit = replace(misfit, suggestion=_nearest(path.split(".")[-1], slot))
        return _failed(misfit)
    if slot is None:
        return ResolvedName(path, signature)
    supplied = claim_supplied(signature, slot.supplies)
    if supplied is None:
        passed = f"{', '.join(slot.supplies)} the recipe passes to {with_article(slot.kind)}"
        message = f"{path} takes no argument for the {passed}"
        return _failed(Diagnostic("wrong-component-kind", "", message))
    defaults = frozenset(slot.defaults) & signature.parameters.keys()
    return ResolvedName(path, signature, supplied=supplied, defaults=defaults - supplied)


def _explain_not_found(path: str, found: NotFound, slot: Slot | None) -> ResolvedName:
    package = path.split(".", 1)[0]
    if found.reason == "no-package" and found.where == package:
        note = Diagnostic(
            "not-installed",
            "",
            f"{package} is not installed here, so {path} and its arguments were not checked",
        )
        return ResolvedName(path, warnings=(note,))
    if found.reason in ("unreadable", "no-package") or (found.reason == "value" and is_user_trusted(path)):
        if is_user_trusted(path):
            note = Diagnostic(
                "unchecked-component", "", f"{path} has no readable source, so its arguments were not checked"
            )
            return ResolvedName(path, warnings=(note,))
        return _failed(_unknown(f"{path} is made at run time and cannot be checked before it"))
    suggestion = (
        _nearest(path, slot)
        if slot is not None and found.reason not in ("module", "value", "invalid")
        else None
    )
    hint = f"; did you mean {suggestion}?" if suggestion else ""
    reasons = {
        "module": f"{path} is a module; name a class or function in it",
        "import": f"{found.part} is something that {found.where} imports for itself, not a part of it",
        "attribute": f"{found.part} is not a module; name the class or function itself",
        "value": f"{path} is a value, neither a class nor a function",
        "invalid": f"the file of {found.where} cannot be read, or is not valid Python",
    }
    message = reasons.get(found.reason, f"{found.where} has nothing called {found.part}")
    return _failed(_unknown(message + hint, suggestion=suggestion))
