"""What a component's name leads to, found without importing anything."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.components import trusting
from tune.config.component import Component
from tune.config.component_check import list_components, resolve_component
from tune.config.lookup import NotFound
from tune.config.signatures import Signature, read_argument_help, read_doc, read_signature
from tune.config.slots import (
    LOSS,
    LR_SCHEDULER,
    METRIC_LOGGER,
    MODEL,
    OPTIMIZER,
    SLOTS,
    TOKENIZER,
    Slot,
)

PACKAGE = {
    "__init__.py": "from .shapes import Circle as Round\nfrom . import shapes\n",
    "shapes.py": '''
import os
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, overload
from torch.optim import SGD
import torch.optim as optim

LIMIT = 7

class Circle:
    """A circle.

    Args:
        radius: in metres,
            along the ground.
        mode (str): how
    """
    def __init__(self, radius: float, /, name="x", *, mode: Literal["a", "b"] = "a", limit: int = LIMIT,
                 rest: int = None, odd=object()) -> None: ...

class Disc(Circle): ...

@dataclass
class Base:
    first: int
    shared: ClassVar[int] = 3

@dataclass(frozen=True)
class Derived(Base):
    second: list[str] = field(default_factory=list)
    hidden: int = field(default=1, init=False)

class Loose:
    def __init__(self, **kwargs): ...

class MySGD(SGD):
    def __init__(self, params, lr=0.1): ...

class Mine(optim.AdamW): ...

class Fits(Protocol):
    x: int

def make_it(lr: float) -> "Mine": ...
def make_other(lr: float) -> Circle: ...
def make_unknown(params): ...

Alias = Circle
value = 3
action = lambda: None

@overload
def many(a: int) -> int: ...
@overload
def many(a: str) -> str: ...
def many(a, b=2): ...
''',
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package on the path whose import would fail the test."""
    folder = tmp_path / "geometry_pkg"
    folder.mkdir()
    for name, text in PACKAGE.items():
        (folder / name).write_text(text + "\nraise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with trusting("geometry_pkg"):
        yield "geometry_pkg.shapes"


def codes(name: str, slot: Slot | None) -> list[str]:
    return [finding.code for finding in resolve_component(name, slot).errors]


def signature(path: str) -> Signature:
    found = read_signature(path)
    assert isinstance(found, Signature), found
    return found


def test_component_is_falsy_without_a_path() -> None:
    assert not Component()
    assert Component("a.b") == Component("a.b", {})
    nested = Component("a.b", {"x": [Component("c.d", {"y": 1})]})
    assert nested.to_mapping() == {"_component_": "a.b", "x": [{"_component_": "c.d", "y": 1}]}


@pytest.mark.parametrize("name", ["Adam", "SGD", "torch.optim.AdamW", "torch.optim.adamw.AdamW"])
def test_optimizers_of_torch_are_found(name: str) -> None:
    resolved = resolve_component(name, OPTIMIZER)
    assert resolved.errors == ()
    assert resolved.path == (name if "." in name else f"torch.optim.{name}")
    assert resolved.signature is not None
    assert resolved.supplied == {"params"}
    assert resolved.signature.parameters["lr"].type.kind == "float"
    assert not resolved.signature.takes_any_keyword


def test_static_signatures_agree_with_live_ones() -> None:
    import inspect

    import torch

    names = [name for name in torch.optim.__all__ if isinstance(getattr(torch.optim, name), type)]
    targets = [("torch.optim", torch.optim, name) for name in names]
    schedulers = torch.optim.lr_scheduler
    targets += [("torch.optim.lr_scheduler", schedulers, name) for name in schedulers.__all__]
    targets += [("torch.nn", torch.nn, name) for name in dir(torch.nn) if name.endswith("Loss")]
    assert len(targets) > 40
    for package, module, name in targets:
        live = inspect.signature(getattr(module, name)).parameters
        static = signature(f"{package}.{name}")
        named = [
            key for key, value in live.items() if value.kind not in (value.VAR_KEYWORD, value.VAR_POSITIONAL)
        ]
        assert list(static.parameters) == named, name
        for key in named:
            assert static.parameters[key].required == (live[key].default is inspect.Parameter.empty), (
                name,
                key,
            )


def test_torch_is_not_imported() -> None:
    code = (
        "import sys\n"
        "from tune.config.component_check import resolve_component\n"
        "from tune.config.slots import OPTIMIZER, LOSS\n"
        "assert not resolve_component('AdamW', OPTIMIZER).errors\n"
        "assert not resolve_component('CrossEntropyLoss', LOSS).errors\n"
        "assert not {'torch', 'numpy', 'yaml'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("name", "slot"),
    [
        ("torch.nn.CrossEntropyLoss", OPTIMIZER),
        ("torch.optim.lr_scheduler.StepLR", OPTIMIZER),
        ("torch.optim.Optimizer", OPTIMIZER),
        ("Optimizer", OPTIMIZER),
        ("torch.optim.AdamW", LOSS),
        ("torch.nn.Linear", LOSS),
        ("torch.nn.Module", LOSS),
        ("torch.nn.MSELoss", LOSS),
        ("torch.nn.NLLLoss", LOSS),  # would take logits for log-probabilities and train on nonsense
        ("tune.modules.loss.loss_sum", LOSS),
        ("tune.models.from_checkpoint", MODEL),
        ("tune.models.get_model", MODEL),
        ("torch.nn.Linear", MODEL),
        ("tune.training.lr_schedulers.get_lr", LR_SCHEDULER),
        ("torch.optim.swa_utils.update_bn", OPTIMIZER),
        ("torch.optim.AdamW", LR_SCHEDULER),
        ("LRScheduler", LR_SCHEDULER),
        ("LBFGS", OPTIMIZER),
        ("torch.optim.SparseAdam", OPTIMIZER),
        ("ReduceLROnPlateau", LR_SCHEDULER),
    ],
)
def test_wrong_kinds_are_refused(name: str, slot: Slot) -> None:
    assert codes(name, slot) == ["wrong-component-kind"]


@pytest.mark.parametrize("slot", [slot for slot in SLOTS if slot.kind not in ("optimizer", "lr_scheduler")])
def test_an_optimizer_fits_no_other_slot(slot: Slot) -> None:
    assert codes("torch.optim.AdamW", slot) == ["wrong-component-kind"]


@pytest.mark.parametrize(
    ("written", "meant"),
    [("adamw", "AdamW"), ("AdmW", "AdamW"), ("adamw_torch_fused", "AdamW"), ("torch.optim.adam_w", "AdamW")],
)
def test_near_spellings_are_suggested(written: str, meant: str) -> None:
    (error,) = resolve_component(written, OPTIMIZER).errors
    assert error.code == "unknown-component"
    assert error.suggestion == meant
    assert meant in error.message


def test_a_package_that_is_not_installed_is_a_warning() -> None:
    # The name is trusted, so it may well be there on the machine that trains.
    resolved = resolve_component("torchao.optim.AdamW8bit", OPTIMIZER)
    if resolved.signature is None:
        assert resolved.errors == ()
        assert [finding.code for finding in resolved.warnings] == ["not-installed"]
        assert resolved.path == "torchao.optim.AdamW8bit"


def test_torchtune_names_are_read_as_ours() -> None:
    resolved = resolve_component("torchtune.modules.loss.CEWithChunkedOutputLoss", LOSS)
    assert resolved.path == "tune.modules.loss.CEWithChunkedOutputLoss"
    assert [finding.code for finding in resolved.warnings] == ["renamed-package"]
    # A name that has moved between its releases is found by its last part.
    assert resolve_component("torchtune.losses.CEWithChunkedOutputLoss", LOSS).path == resolved.path


def test_constructor_arguments_are_read(package: str) -> None:
    circle = signature(f"{package}.Circle")
    kinds = {name: (parameter.kind, parameter.type.short()) for name, parameter in circle.parameters.items()}
    assert kinds == {
        "radius": ("positional", "float"),
        "name": ("either", "str"),
        "mode": ("keyword", "a|b"),
        "limit": ("keyword", "int"),
        "rest": ("keyword", "Optional[int]"),
        "odd": ("keyword", "any"),
    }
    assert [name for name, parameter in circle.parameters.items() if parameter.required] == ["radius"]
    assert circle.parameters["limit"].default_text == "7"
    assert circle.parameters["odd"].default_text == "object()"
    doc = read_doc(f"{package}.Circle")
    assert doc.startswith("A circle.")
    assert read_argument_help(doc, circle.parameters) == {
        "radius": "in metres, along the ground.",
        "mode": "how",
    }


def test_inheritance_aliases_and_reexports_are_followed(package: str) -> None:
    circle = signature(f"{package}.Circle")
    for name in (f"{package}.Disc", f"{package}.Alias", "geometry_pkg.Round"):
        assert signature(name).parameters == circle.parameters
    assert list(signature(f"{package}.Derived").parameters) == ["first", "second"]
    assert signature(f"{package}.Loose").takes_any_keyword
    assert list(signature(f"{package}.many").parameters) == ["a", "b"]
    assert list(signature(f"{package}.MySGD").parameters) == ["params", "lr"]


def test_what_a_maker_returns_has_the_signature_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "making_pkg.py").write_text(
        """
from typing import Protocol
import torch

class Builder(Protocol):
    def __call__(self, rank: int, *, alpha: float = 16.0) -> torch.nn.Module:
        '''A model, adapted.'''

class Direct:
    def __init__(self, base): ...
    def __call__(self, rank: int, *, alpha: float = 16.0) -> torch.nn.Module:
        '''A model, adapted.'''

class Silent:
    pass

class Wrapper:
    def __init__(self, base, level=1): ...
    def __call__(self, rank: int, *args: P.args, alpha: float = 16.0, **others: P.kwargs) -> torch.nn.Module:
        '''A model, adapted.'''

def narrow(width, height: int = 3, *, depth) -> torch.nn.Module: ...
def adapted(base, **anything) -> Builder: ...
def unsaid(base): ...
def number(base) -> int: ...

small = adapted(print, alpha=2)
direct = Direct(print)
wrapped = Wrapper(narrow, level=2)
twice = Wrapper(wrapped)
counted = number(1)
unknown = unsaid(1)
silent = Silent()
"""
    )
    monkeypatch.syspath_prepend(tmp_path)
    with trusting("making_pkg"):
        for name in ("small", "direct"):
            made = signature(f"making_pkg.{name}")
            required = {parameter.name: parameter.required for parameter in made.parameters.values()}
            assert required == {"rank": True, "alpha": False}
            assert not made.takes_any_keyword
            assert "torch.nn.modules.module.Module" in made.kinds
            assert read_doc(f"making_pkg.{name}") == "A model, adapted."
        # What takes another's arguments takes them by name; a second wrapping adds nothing of its own.
        for name in ("wrapped", "twice"):
            made = signature(f"making_pkg.{name}")
            required = {parameter.name: parameter.required for parameter in made.parameters.values()}
            wanted = {"rank": True, "alpha": False, "width": True, "height": False, "depth": True}
            assert required == wanted
            assert made.parameters["height"].default_text == "3"
            assert not made.takes_any_keyword
            assert not made.takes_any_positional
        for name in ("unknown", "counted", "silent"):
            assert isinstance(read_signature(f"making_pkg.{name}"), NotFound)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MySGD", []),
        ("Mine", []),
        ("make_unknown", []),  # a trusted function may return anything
        ("Circle", ["wrong-component-kind"]),
        ("make_other", ["wrong-component-kind"]),
        ("make_it", []),
        ("Fits", ["wrong-component-kind"]),
        ("value", []),  # a trusted package may build its callables at run time: a warning
        ("shapes", ["unknown-component"]),
        ("os", ["unknown-component"]),
        ("Circle.area", ["unknown-component"]),
        ("nothing", ["unknown-component"]),
    ],
)
def test_trusted_packages_are_judged_by_kind(package: str, name: str, expected: list[str]) -> None:
    assert codes(f"{package}.{name}", OPTIMIZER) == expected


def test_a_file_that_is_no_python_is_told(package: str, tmp_path: Path) -> None:
    (tmp_path / "geometry_pkg" / "broken.py").write_text("def ok(params): ...\n\ndef broken(:\n")
    (error,) = resolve_component("geometry_pkg.broken.ok", OPTIMIZER).errors
    assert error.message == "the file of geometry_pkg.broken cannot be read, or is not valid Python"


def test_supplied_arguments_are_matched_by_position(package: str) -> None:
    slot = Slot("thing", ("geometry_pkg",), supplies=("anything",))
    assert resolve_component(f"{package}.many", slot).supplied == {"a"}
    assert resolve_component(f"{package}.make_unknown", slot).supplied == {"params"}


def test_listing_a_slot_names_what_fits() -> None:
    listed = list_components(OPTIMIZER)
    assert listed["AdamW"] == "tune.modules.optim.AdamW"
    assert "Optimizer" not in listed
    assert "lr_scheduler" not in listed
    assert "LBFGS" not in listed  # cannot take a plain step
    assert all(not resolve_component(name, OPTIMIZER).errors for name in listed)


@pytest.mark.parametrize("slot", SLOTS, ids=lambda slot: slot.kind)
def test_every_slot_lists_what_it_takes(slot: Slot) -> None:
    listed = list_components(slot)
    assert listed
    for name, path in listed.items():
        resolved = resolve_component(name, slot)
        assert resolved.errors == ()
        assert resolved.path == path


def test_short_names_are_everyday_words() -> None:
    assert {"disk", "stdout", "jsonl", "tensorboard", "wandb"} <= set(list_components(METRIC_LOGGER))
    assert {"cosine", "linear", "constant", "StepLR"} <= set(list_components(LR_SCHEDULER))
    assert {"auto", "llama2"} <= set(list_components(TOKENIZER))
    assert {"auto", "llama2_7b", "llama2_13b", "llama2_70b"} <= set(list_components(MODEL))


TORCHTUNE_LLAMA2 = {
    "model": "models.llama2.llama2_7b",
    "tokenizer": "models.llama2.llama2_tokenizer",
    "dataset": "datasets.alpaca_dataset",
    "checkpointer": "training.FullModelHFCheckpointer",
    "loss": "modules.loss.CEWithChunkedOutputLoss",
    "lr_scheduler": "training.lr_schedulers.get_cosine_schedule_with_warmup",
    "metric_logger": "training.metric_logging.DiskLogger",
    "profiler": "training.setup_torch_profiler",
    "collate_fn": "data.padded_collate_sft",
}


@pytest.mark.parametrize(
    "slot", [slot for slot in SLOTS if slot.kind in TORCHTUNE_LLAMA2], ids=lambda slot: slot.kind
)
def test_the_names_of_torchtunes_configs_are_understood(slot: Slot) -> None:
    resolved = resolve_component(f"torchtune.{TORCHTUNE_LLAMA2[slot.kind]}", slot)
    assert resolved.errors == ()
    assert resolved.path == f"tune.{TORCHTUNE_LLAMA2[slot.kind]}"
    assert resolved.signature is not None


def test_names_that_moved_between_torchtunes_releases_are_found() -> None:
    moved = {
        "utils.FullModelHFCheckpointer": ("checkpointer", "tune.training.FullModelHFCheckpointer"),
        "datasets.AlpacaDataset": ("dataset", "tune.datasets.alpaca_dataset"),
        "utils.metric_logging.DiskLogger": ("metric_logger", "tune.training.metric_logging.DiskLogger"),
        "modules.get_cosine_schedule_with_warmup": (
            "lr_scheduler",
            "tune.training.lr_schedulers.get_cosine_schedule_with_warmup",
        ),
    }
    slots = {slot.kind: slot for slot in SLOTS}
    for name, (kind, path) in moved.items():
        assert resolve_component(f"torchtune.{name}", slots[kind]).path == path
