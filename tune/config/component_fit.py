"""Whether a component fits where it is named: its kind, its name, and room for what the recipe passes."""

from __future__ import annotations

from fnmatch import fnmatchcase

from tune.config.diagnostics import Diagnostic
from tune.config.signatures import Signature, canonical_path
from tune.config.slots import SLOTS, Slot
from tune.config.trust import BUILT_IN_PACKAGES, is_user_trusted, lies_within

# Kinds of object that are unmistakable, for slots whose own kind has no common base class.
_UNMISTAKABLE = {
    "torch.nn.modules.module.Module": "model or loss",
    "torch.optim.optimizer.Optimizer": "optimizer",
    "torch.optim.lr_scheduler.LRScheduler": "learning-rate scheduler",
}


def judge_kind(path: str, signature: Signature, slot: Slot) -> Diagnostic | None:
    """Return why a component does not fit its slot, or None."""

    def misfit(reason: str) -> Diagnostic:
        return Diagnostic("wrong-component-kind", "", f"{path} is not {with_article(slot.kind)}: {reason}")

    package = path.split(".", 1)[0]
    is_built_in = package in BUILT_IN_PACKAGES and not is_user_trusted(path)
    if signature.is_interface:
        return misfit("it only describes what one has to offer")
    if package == "torch" and not any(lies_within(area, ["torch"]) for area in areas(slot)):
        return misfit(f"those live in {', '.join(slot.namespaces)}")
    if package == "torch" and not signature.is_class:
        return misfit("it is a function")
    name = path.split(".")[-1]
    if is_built_in and name in slot.unsuitable:
        return Diagnostic("wrong-component-kind", "", f"{path} does not fit here: {slot.unsuitable[name]}")
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
            what = "not a subclass of" if signature.is_class else "a function that does not return a"
            return misfit(f"it is {what} {slot.accepts}")
        if not fits and is_built_in and (package == "tune" or not lies_within(path, areas(slot))):
            return misfit(f"what it returns is not known to be a {slot.accepts}")
    else:
        for root, kind in _UNMISTAKABLE.items():
            if root in signature.kinds:
                return misfit(f"it is {with_article(kind)}")
        if is_built_in and not lies_within(path, areas(slot)):
            return misfit(f"those live in {', '.join(slot.namespaces)}")
    if is_built_in and not is_spelt_like(name, slot):
        return misfit(f"what fits is called {' or '.join(slot.names)}")
    return None


def judge_nested(path: str, signature: Signature) -> Diagnostic | None:
    """Return why a component may not stand inside another's arguments, or None.

    A class of an allowed package only builds an object. A function may do anything, so it has to be one that
    some slot would take.
    """
    if signature.is_class or is_user_trusted(path):
        return None
    for slot in SLOTS:
        if lies_within(path, areas(slot)) and judge_kind(path, signature, slot) is None:
            return None
    return Diagnostic("untrusted-component", "", f"{path} is a function that builds no component")


def claim_supplied(signature: Signature, supplies: tuple[str, ...]) -> frozenset[str] | None:
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


def is_spelt_like(name: str, slot: Slot) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in slot.names)


def areas(slot: Slot) -> tuple[str, ...]:
    return tuple(namespace.removesuffix(".*") for namespace in slot.namespaces)


def with_article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeio' else 'a'} {noun}"
