"""Recipes are imported as `tune.recipes`, and from a clone by the folder's name as well."""

from __future__ import annotations

import importlib.util
import pickle
import runpy
import sys

import pytest


@pytest.mark.parametrize("name", ["interfaces", "full_finetune", "params.full_finetune", "params"])
def test_both_names_mean_one_module(name: str) -> None:
    assert importlib.import_module(f"recipes.{name}") is importlib.import_module(f"tune.recipes.{name}")


def test_a_class_is_one_class_by_either_name() -> None:
    by_folder = importlib.import_module("recipes.params.full_finetune").FullFinetuneParams
    assert pickle.loads(pickle.dumps(by_folder)) is by_folder
    assert by_folder.__module__ == "tune.recipes.params.full_finetune"


def test_what_is_not_there_is_missing_by_both_names() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("recipes.nowhere")
    assert importlib.util.find_spec("recipes.nowhere") is None


def test_python_m_runs_a_module_by_the_folders_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "recipes.interfaces", raising=False)  # as a new process has it
    found = runpy.run_module("recipes.interfaces", run_name="run_alone")
    assert found["FTRecipeInterface"].__module__ == "run_alone"
