"""Every declared parameter is read by its recipe, and none has a second, hidden default there."""

from __future__ import annotations

import ast
import importlib
import inspect
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tune.config import fields_of

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PARAMS = {
    "full_finetune": "FullFinetuneParams",
    "lora_finetune": "LoraFinetuneParams",
    "generate": "GenerateParams",
}


# What a recipe hands to a function that reads several parameters.
WHOLE = ("params", "self.params")


def attributes_of_params(tree: ast.AST) -> set[str]:
    """Names read as `params.NAME` or `self.params.NAME`."""
    names = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        owner = node.value
        is_params = (isinstance(owner, ast.Name) and owner.id == "params") or (
            isinstance(owner, ast.Attribute) and owner.attr in ("params", "_params")
        )
        if is_params:
            names.add(node.attr)
    return names


def read_by_the_library(tree: ast.AST, module: ModuleType) -> set[str]:
    """Names that functions read which are handed `params`: what their parameter's protocol declares.

    Each name must be read in the file that declares it.
    """
    names = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        handed = [place for place, argument in enumerate(node.args) if ast.unparse(argument) in WHOLE]
        if not handed:
            continue
        function: Any = module
        for part in ast.unparse(node.func).split("."):
            function = getattr(function, part, None)
        if not inspect.isfunction(function):
            continue
        hints = typing.get_type_hints(function)
        for place in handed:
            name = list(inspect.signature(function).parameters)[place]
            protocol = hints[name]
            for part in getattr(protocol, "__mro__", ()):
                if part is typing.Protocol or not getattr(part, "_is_protocol", False):
                    continue
                declared = {attribute for attribute in vars(part) if not attribute.startswith("_")}
                source = ast.parse(Path(inspect.getfile(part)).read_text(encoding="utf-8"))
                assert declared <= attributes_of_params(source), part
                names |= declared
    return names


def hidden_defaults(tree: ast.AST) -> list[int]:
    """Lines with a default beside the declared one: `getattr(params, name, default)`, `params.get(key, default)`."""
    lines = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) == 3:
            lines.append(node.lineno)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "get" and len(node.args) == 2:
            lines.append(node.lineno)
    return lines


def test_every_recipe_with_params_is_covered() -> None:
    # finetune.py holds what several recipes share: each of them has to read it. checks.py declares nothing.
    declared = {path.stem for path in (RECIPES / "params").glob("*.py")} - {
        "__init__",
        "finetune",
        "checks",
    }
    assert declared == set(PARAMS)


@pytest.mark.parametrize("recipe", PARAMS)
def test_every_field_is_read(recipe: str) -> None:
    params_cls = getattr(importlib.import_module(f"recipes.params.{recipe}"), PARAMS[recipe])
    tree = ast.parse((RECIPES / f"{recipe}.py").read_text(encoding="utf-8"))
    # A short form is read by the expansion that moves it into its component.
    fields = {name for name, info in fields_of(params_cls).items() if not info.short_for}
    read = attributes_of_params(tree)
    read |= read_by_the_library(tree, importlib.import_module(f"recipes.{recipe}"))
    assert fields - read == set(), "declared, but the recipe never reads it"
    methods = {name for name in dir(params_cls) if callable(getattr(params_cls, name))}
    assert read - fields - methods == set(), "read, but never declared"


@pytest.mark.parametrize("recipe", PARAMS)
def test_no_hidden_defaults(recipe: str) -> None:
    tree = ast.parse((RECIPES / f"{recipe}.py").read_text(encoding="utf-8"))
    assert hidden_defaults(tree) == []


def test_the_checks_can_fail() -> None:
    tree = ast.parse(
        "x = getattr(params, 'lr', 1e-3)\ny = cfg.get('lr', 2)\nz = self.params.seed + params.lr"
    )
    assert hidden_defaults(tree) == [1, 2]
    assert attributes_of_params(tree) == {"seed", "lr"}


def test_parameters_handed_on_are_followed() -> None:
    recipe = importlib.import_module("recipes.full_finetune")
    read = read_by_the_library(ast.parse("training.plan_memory(model, params)"), recipe)
    assert {"batch_size", "optimizer_in_bwd"} <= read
    assert "lr" not in read
    # A function that takes anything vouches for nothing.
    assert read_by_the_library(ast.parse("training.make_fingerprint(params, [])"), recipe) == set()
