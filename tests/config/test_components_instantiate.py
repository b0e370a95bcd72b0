"""Building components: nesting, overriding, offering, and errors that name what went wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.components import trusting
from tune.config.component import Component
from tune.config.instantiate import import_component, instantiate
from tune.errors import ConfigError


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A trusted module of little things to build."""
    (tmp_path / "little_parts.py").write_text(
        "class Box:\n"
        "    def __init__(self, *args, **kwargs):\n"
        "        self.args, self.kwargs = args, kwargs\n"
        "def pair(left, right=2): return (left, right)\n"
        "def keyword_only(*, size, colour='red'): return (size, colour)\n"
        "def broken(x): raise TypeError('inside')\n"
        "number = 3\n"
        "from missing_dependency import nothing\n".replace("from missing", "# from missing")
    )
    (tmp_path / "needs_missing.py").write_text("import a_missing_dependency\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    with trusting("little_parts", "needs_missing"):
        yield "little_parts"


@pytest.mark.parametrize(
    "component",
    [
        Component("torch.optim.SGD", {"lr": 0.25, "momentum": 0.5}),
        {"_component_": "torch.optim.SGD", "lr": 0.25, "momentum": 0.5},
    ],
)
def test_arguments_reach_the_class(component: Component) -> None:
    optimizer = instantiate(component, [torch.nn.Parameter(torch.zeros(3))])
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["lr"] == 0.25
    assert optimizer.defaults["momentum"] == 0.5


def test_the_callers_arguments_win() -> None:
    component = Component("torch.optim.SGD", {"lr": 0.25})
    assert instantiate(component, [torch.nn.Parameter(torch.zeros(3))], lr=0.75).defaults["lr"] == 0.75
    assert component.kwargs == {"lr": 0.25}


def test_overridden_components_are_not_built(parts: str) -> None:
    component = Component(f"{parts}.pair", {"left": Component(f"{parts}.broken", {"x": 1})})
    assert instantiate(component, left=5) == (5, 2)


def test_nested_components_are_built_first(parts: str) -> None:
    inner = {"_component_": f"{parts}.pair", "left": 1}
    box = instantiate(
        {
            "_component_": f"{parts}.Box",
            "one": inner,
            "many": [inner, {"deep": inner}],
            "plain": {"a": [1, None]},
        }
    )
    assert box.kwargs == {"one": (1, 2), "many": [(1, 2), {"deep": (1, 2)}], "plain": {"a": [1, None]}}


def test_arguments_are_not_shared_between_builds(parts: str) -> None:
    component = Component(f"{parts}.Box", {"items": [1]})
    instantiate(component).kwargs["items"].append(2)
    assert instantiate(component).kwargs["items"] == [1]


def test_offers_are_passed_only_where_they_are_taken(parts: str) -> None:
    defaults = {"size": 9, "colour": "blue", "unknown": 1}
    assert instantiate(f"{parts}.keyword_only", defaults=defaults) == (9, "blue")
    green = Component(f"{parts}.keyword_only", {"colour": "green"})
    assert instantiate(green, defaults=defaults) == (9, "green")
    assert instantiate(green, defaults=defaults, size=4) == (4, "green")
    assert instantiate(f"{parts}.pair", 5, defaults={"left": 1, "right": 7}) == (5, 7)
    assert instantiate(f"{parts}.Box", defaults=defaults).kwargs == {}


@pytest.mark.parametrize(
    ("component", "words"),
    [
        ({"_component_": "torch.optim.SGD", "params": [], "lrr": 1}, "lrr"),
        ({"_component_": "torch.optim.SGD"}, "params"),
        ({"_component_": "torch.optim.NoSuch"}, "NoSuch"),
        ({"_component_": "torch.optim"}, "torch"),
        ({"_component_": 3}, "_component_"),
        ({"lr": 3}, "_component_"),
        ({}, "_component_"),
        (3, "int"),
        (None, "NoneType"),
        ("", "no component"),
        ("AdamW", "short name"),
        (Component(), "no component"),
        ("bitsandbytes_missing.X", "--trust"),
    ],
)
def test_what_cannot_be_built_is_explained(component: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        instantiate(component)  # type: ignore[arg-type]


def test_missing_packages_are_named(parts: str) -> None:
    with pytest.raises(ConfigError, match="a_missing_dependency"):
        instantiate("needs_missing.Thing")
    with trusting("not_there_at_all"), pytest.raises(ConfigError, match="pip install not_there_at_all"):
        instantiate("not_there_at_all.Thing")


def test_values_are_not_components(parts: str) -> None:
    with pytest.raises(ConfigError, match="neither a class nor a function"):
        instantiate(f"{parts}.number")


def test_a_failure_inside_the_callable_stays_as_it_is(parts: str) -> None:
    with pytest.raises(TypeError, match="inside"):
        instantiate(Component(f"{parts}.broken", {"x": 1}))


def test_endless_nesting_ends(parts: str) -> None:
    component: dict[str, object] = {"_component_": f"{parts}.pair", "left": 1}
    for _ in range(500):
        component = {"_component_": f"{parts}.pair", "left": component}
    with pytest.raises(ConfigError, match="deep"):
        instantiate(component)
    circular: dict[str, object] = {"_component_": f"{parts}.pair"}
    circular["left"] = circular
    with pytest.raises(ConfigError, match="deep"):
        instantiate(circular)


def test_functions_can_be_had_without_calling_them() -> None:
    assert import_component("torch.nn.functional.relu") is torch.nn.functional.relu
