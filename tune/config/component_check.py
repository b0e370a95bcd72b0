"""Judging the component a configuration names: does it exist, may it be used, does it fit, what does it take."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tune.config.findings import Finding
from tune.config.lookup import NotFound, find_definition, find_module_at, list_submodules, public_names
from tune.config.signatures import Signature, canonical_path, signature_of
from tune.config.slots import SLOTS, Slot
from tune.config.trust import (
    BUILT_IN_PACKAGES,
    is_dotted_name,
    is_user_trusted,
    judge_definition,
    judge_name,
    lies_within,
)

HISTORIC_PREFIX = "torchtune."
# Kinds of object that are unmistakable, for slots whose own kind has no common base class.
_UNMISTAKABLE = {
    "torch.nn.modules.module.Module": "model or loss",
    "torch.optim.optimizer.Optimizer": "optimizer",
    "torch.optim.lr_scheduler.LRScheduler": "learning-rate scheduler",
}


@dataclass(frozen=True)
class ResolvedName:
    """What a component's name turned out to be.

    Args:
        path: full dotted path, "" where the name could not be resolved.
        signature: its arguments, or None where they are not known (an error, or not installed here).
        errors: why it cannot be used; without a position, which the caller knows.
        warnings: what the user should know.
        supplied: arguments the recipe passes itself; a config must not set them.
        offered: arguments the recipe passes where the config does not set them.
    """

    path: str
    signature: Signature | None = None
    errors: tuple[Finding, ...] = ()
    warnings: tuple[Finding, ...] = ()
    supplied: frozenset[str] = frozenset()
    offered: frozenset[str] = field(default_factory=frozenset)


def resolve_component(name: str, slot: Slot | None = None) -> ResolvedName:
    """Return what component `name` is, without importing it.

    Args:
        name: a short name (needs a slot) or a dotted path, as the configuration has it.
        slot: the place it was named for; None for a component nested in another one's arguments.
    """
    if name.startswith(HISTORIC_PREFIX):
        renamed = "tune." + name.removeprefix(HISTORIC_PREFIX)
        resolved = resolve_component(renamed, slot)
        if resolved.errors and slot is not None:
            # Names moved between torchtune's releases (utils to training, modules to training.lr_schedulers).
            by_last_part = _resolve_short_name(name.split(".")[-1], slot)
            resolved = resolved if by_last_part.errors else by_last_part
        notice = Finding(
            "renamed-package", f"{name} is read as {resolved.path or renamed}", resolved.path or renamed
        )
        return replace(resolved, warnings=(notice, *resolved.warnings))
    if "." in name:
        return _resolve_path(name, slot)
    if slot is None:
        refused = None if is_dotted_name(name) else judge_name(name)
        message = f"{name!r} is not a dotted path; inside another component only those are understood"
        return _failed(refused or Finding("unknown-component", message))
    return _resolve_short_name(name, slot)


def list_components(slot: Slot) -> dict[str, str]:
    """Return the short names that fit `slot`, each with the full path it stands for, in the order of the slot."""
    listed: dict[str, str] = {}
    for namespace, names in _namespaces(slot):
        for name in names:
            path = f"{namespace}.{name}"
            if _is_spelt_like(name, slot) and not _resolve_path(path, slot).errors:
                listed.setdefault(_shorten(name, slot), path)
    return listed


def _failed(*errors: Finding, path: str = "") -> ResolvedName:
    return ResolvedName(path, errors=errors)


def _resolve_short_name(name: str, slot: Slot) -> ResolvedName:
    if not name:
        return _failed(Finding("unknown-component", f"no {slot.kind} is named"))
    refused = None if is_dotted_name(name) else judge_name(name)
    if refused is not None:
        return _failed(refused)
    first_failure: ResolvedName | None = None
    for pattern in slot.patterns:
        for namespace, names in _namespaces(slot):
            match = _match(name, pattern, names)
            if match is None:
                continue
            resolved = _resolve_path(f"{namespace}.{match}", slot)
            if not resolved.errors:
                return resolved
            first_failure = first_failure or resolved
    return first_failure or _failed(_unknown_short_name(name, slot))


def _match(name: str, pattern: str, names: tuple[str, ...]) -> str | None:
    if pattern == "{}":
        return name if name in names else None
    if pattern.format(name) in names:  # text_completion_dataset rather than TextCompletionDataset
        return pattern.format(name)
    wanted = _fold(pattern.format(name))
    return next((candidate for candidate in names if _fold(candidate) == wanted), None)


def _fold(name: str) -> str:
    return name.replace("_", "").casefold()


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
            if module is not None and module.is_package:
                yield module.name, public_names(module)


def _unknown_short_name(name: str, slot: Slot) -> Finding:
    suggestion = _nearest(name, slot)
    places = ", ".join(slot.namespaces)
    missing = [place for place in slot.namespaces if find_module_at(place.split(".")[0]) is None]
    hint = f"; did you mean {suggestion}?" if suggestion else ""
    if missing:
        hint += (
            f" ({missing[0].split('.')[0]} is not installed here: name what lies in it as {missing[0]}.NAME)"
        )
    return Finding("unknown-component", f"no {slot.kind} called {name!r} in {places}{hint}", suggestion)


def _nearest(name: str, slot: Slot) -> str | None:
    """Return the short name in `slot` nearest to what was written, or None."""
    import difflib  # only on the way to an error

    by_folded: dict[str, str] = {}
    for _, names in _namespaces(slot):
        for candidate in names:
            if _is_spelt_like(candidate, slot):
                short = _shorten(candidate, slot)
                by_folded.setdefault(_fold(short), short)
                by_folded.setdefault(_fold(candidate), short)
    last = _fold(name.split(".")[-1])
    for close in difflib.get_close_matches(last, by_folded, n=3, cutoff=0.7):
        if not resolve_component(by_folded[close], slot).errors:
            return by_folded[close]
    # Other tools decorate the name: adamw_torch_fused, paged_adamw.
    inside = [key for key in by_folded if len(key) > 3 and key in last]
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
    refused = judge_name(path)
    if refused is not None:
        return _failed(refused)
    found = find_definition(path)
    if isinstance(found, NotFound):
        return _explain_not_found(path, found, slot)
    refused = judge_definition(found.path, path)
    if refused is not None:
        return _failed(refused)
    signature = signature_of(found)
    misfit = _judge_nested(path, signature) if slot is None else _judge_kind(path, signature, slot)
    if misfit is not None:
        return _failed(misfit)
    if slot is None:
        return ResolvedName(path, signature)
    supplied = _claim(signature, slot.supplies)
    if supplied is None:
        message = f"{path} takes no argument for the {', '.join(slot.supplies)} the recipe passes to {_a(slot.kind)}"
        return _failed(Finding("wrong-component-kind", message))
    offered = frozenset(name for name in slot.offers if name in signature.parameters)
    return ResolvedName(path, signature, supplied=supplied, offered=offered - supplied)


def _explain_not_found(path: str, found: NotFound, slot: Slot | None) -> ResolvedName:
    package = path.split(".", 1)[0]
    if found.reason == "no-package" and found.where == package:
        note = Finding(
            "not-installed", f"{package} is not installed here, so {path} and its arguments were not checked"
        )
        return ResolvedName(path, warnings=(note,))
    if found.reason in ("unreadable", "no-package") or (found.reason == "value" and is_user_trusted(path)):
        if is_user_trusted(path):
            note = Finding(
                "unchecked-component", f"{path} has no readable source, so its arguments were not checked"
            )
            return ResolvedName(path, warnings=(note,))
        return _failed(
            Finding("unknown-component", f"{path} is made at run time and cannot be checked before it")
        )
    suggestion = _nearest(path, slot) if slot is not None and found.reason != "module" else None
    hint = f"; did you mean {suggestion}?" if suggestion else ""
    reasons = {
        "module": f"{path} is a module; name a class or function in it",
        "import": f"{found.part} is something that {found.where} imports for itself, not a part of it",
        "attribute": f"{found.part} is not a module; name the class or function itself",
        "value": f"{path} is a value, neither a class nor a function",
    }
    message = reasons.get(found.reason, f"{found.where} has nothing called {found.part}")
    return _failed(Finding("unknown-component", message + hint, suggestion))


def _is_spelt_like(name: str, slot: Slot) -> bool:
    return any(_has_shape(name, pattern) for pattern in slot.names)


def _has_shape(name: str, pattern: str) -> bool:
    """Return whether `name` is `pattern`, where one leading and one trailing ``*`` may stand for anything."""
    core = pattern.strip("*")
    if pattern.startswith("*"):
        return core in name if pattern.endswith("*") else name.endswith(core)
    return name.startswith(core) if pattern.endswith("*") else name == core


def _judge_kind(path: str, signature: Signature, slot: Slot) -> Finding | None:
    """Return why a component does not fit its slot, or None."""

    def misfit(reason: str) -> Finding:
        suggestion = _nearest(path.split(".")[-1], slot) if not lies_within(path, _areas(slot)) else None
        return Finding("wrong-component-kind", f"{path} is not {_a(slot.kind)}: {reason}", suggestion)

    package = path.split(".", 1)[0]
    is_built_in = package in BUILT_IN_PACKAGES and not is_user_trusted(path)
    if signature.is_interface:
        return misfit("it only describes what one has to offer")
    if package == "torch" and not any(lies_within(area, ["torch"]) for area in _areas(slot)):
        return misfit(f"those live in {', '.join(slot.namespaces)}")
    if package == "torch" and not signature.is_class:
        return misfit("it is a function")
    name = path.split(".")[-1]
    if (
        is_built_in
        and name.startswith(("get_", "from_"))
        and not any(p.startswith("get_") for p in slot.patterns)
    ):
        return misfit("it finds one; name what it would find")
    if slot.accepts:
        root = canonical_path(slot.accepts)
        if signature.path == root:
            return misfit(f"it is the base class of every {slot.kind}; name one of its kinds")
        fits = root in signature.kinds
        if not fits and signature.kinds_known:
            return misfit(
                f"it is not a subclass of {slot.accepts}" if signature.is_class else _wrong_return(slot)
            )
        if not fits and is_built_in and not lies_within(path, _areas(slot)):
            return misfit(f"what it returns is not known to be a {slot.accepts}")
    else:
        for root, kind in _UNMISTAKABLE.items():
            if root in signature.kinds:
                return misfit(f"it is {_a(kind)}")
        if is_built_in and not lies_within(path, _areas(slot)):
            return misfit(f"those live in {', '.join(slot.namespaces)}")
    if is_built_in and not _is_spelt_like(name, slot):
        return misfit(f"what fits is called {' or '.join(slot.names)}")
    return None


def _a(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"


def _wrong_return(slot: Slot) -> str:
    return f"it is a function that does not return a {slot.accepts}"


def _judge_nested(path: str, signature: Signature) -> Finding | None:
    """Return why a component may not stand inside another's arguments, or None.

    A class of an allowed package only builds an object. A function may do anything, so it has to be one that
    some slot would take.
    """
    if signature.is_class or is_user_trusted(path):
        return None
    for slot in SLOTS:
        if lies_within(path, _areas(slot)) and _judge_kind(path, signature, slot) is None:
            return None
    return Finding("untrusted-component", f"{path} is a function that builds no component")


def _areas(slot: Slot) -> tuple[str, ...]:
    return tuple(namespace.removesuffix(".*") for namespace in slot.namespaces)


def _claim(signature: Signature, supplies: tuple[str, ...]) -> frozenset[str] | None:
    """Return the parameters that the recipe's own arguments fill: by name, else in order; None if there is no room."""
    claimed: list[str] = []
    for position, name in enumerate(supplies):
        if name in signature.parameters:
            claimed.append(name)
            continue
        places = [key for key, parameter in signature.parameters.items() if parameter.kind != "keyword"]
        if position < len(places) and places[position] not in claimed:
            claimed.append(places[position])
        elif not (signature.takes_any_positional or signature.takes_any_keyword):
            return None
    return frozenset(claimed)
