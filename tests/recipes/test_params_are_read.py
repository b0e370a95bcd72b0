"""Every declared parameter is read by its recipe, and none has a second, hidden default there."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from pathlib import Path

import pytest

from tune.config import fields_of
from tune.recipes.params.full_finetune import FullFinetuneParams

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
PARAMS = {
    "full_finetune": "FullFinetuneParams",
    "lora_finetune": "LoraFinetuneParams",
    "preference_finetune": "PreferenceFinetuneParams",
    "reward_finetune": "RewardFinetuneParams",
    "distill": "DistillParams",
    "generate": "GenerateParams",
    "chat": "ChatParams",
    "evaluate": "EvaluateParams",
}


# What may be handed the whole of the params: it looks at what was declared, and at no name.
TAKES_ALL = {"fixed_on_resume", "training.write_resolved_config"}


def attributes_of(owner_names: set[str], tree: ast.AST) -> set[str]:
    """Names read as `OWNER.NAME`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in owner_names
    }


def read_by(tree: ast.AST, params_cls: type) -> set[str]:
    """Return the names read as `params.NAME`, also by methods of the params that are called there, and by theirs."""
    read = attributes_of({"params", "self.params"}, tree)
    followed: set[str] = set()
    methods = {name for name in dir(params_cls) if inspect.isfunction(getattr(params_cls, name))}
    while new := (read & methods) - followed:
        followed |= new
        # With those that they override, and may call.
        for name in new:
            for owner in params_cls.__mro__:
                if name in vars(owner):
                    source = textwrap.dedent(inspect.getsource(vars(owner)[name]))
                    read |= attributes_of({"self", "super()"}, ast.parse(source))
    return read


def handed_on_whole(tree: ast.AST) -> set[str]:
    """Return what is called with the whole of the params, functions of the recipe's own file aside."""
    own = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    return {
        ast.unparse(node.func)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) not in own
        and any(ast.unparse(argument) in ("params", "self.params") for argument in node.args)
    }


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
    # What several recipes share each of them has to read; the others declare nothing.
    declared = {path.stem for path in (RECIPES / "params").glob("*.py")} - {
        "__init__",
        *("finetune", "finetune_data", "finetune_devices", "finetune_optimization", "finetune_output"),
        "checks",
        "data_checks",
        "full_or_lora",
        "limits",
        "loaded_model",
        "model",
        "pairs",
        "shared_rows",
    }
    assert declared == set(PARAMS)


@pytest.mark.parametrize("recipe", PARAMS)
def test_every_field_is_read(recipe: str) -> None:
    params_cls = getattr(importlib.import_module(f"tune.recipes.params.{recipe}"), PARAMS[recipe])
    tree = ast.parse((RECIPES / f"{recipe}.py").read_text(encoding="utf-8"))
    # A short form is read by the expansion that moves it into its component.
    fields = {name for name, info in fields_of(params_cls).items() if not info.short_for}
    read = read_by(tree, params_cls)
    assert fields - read == set(), "declared, but the recipe never reads it"
    methods = {name for name in dir(params_cls) if callable(getattr(params_cls, name))}
    assert read - fields - methods == set(), "read, but never declared"
    assert handed_on_whole(tree) - TAKES_ALL == set(), "library functions take plain values"


@pytest.mark.parametrize("recipe", PARAMS)
def test_no_hidden_defaults(recipe: str) -> None:
    tree = ast.parse((RECIPES / f"{recipe}.py").read_text(encoding="utf-8"))
    assert hidden_defaults(tree) == []


def test_the_checks_can_fail() -> None:
    tree = ast.parse(
        "x = getattr(params, 'lr', 1e-3)\ny = cfg.get('lr', 2)\nz = self.params.seed + params.lr"
    )
    assert hidden_defaults(tree) == [1, 2]
    assert attributes_of({"params", "self.params"}, tree) == {"seed", "lr"}
    assert handed_on_whole(ast.parse("plan(params, 3), training.log(self.params)")) == {
        "plan",
        "training.log",
    }


def test_methods_of_the_params_are_followed() -> None:
    read = read_by(ast.parse("training.init_mesh(device, params.process_choices())"), FullFinetuneParams)
    assert {"process_choices", "enable_fsdp", "data_parallel_shard_dim"} <= read
    assert "lr" not in read
