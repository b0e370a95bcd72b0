"""Imports go down only: no module imports from its own level's siblings or from a level above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Highest first. Rooms on one line are siblings and never import each other, except where PEERS says so.
FLOORS: list[tuple[str, ...]] = [
    ("tune.recipes", "tune.__main__"),
    ("tune.cli",),
    (
        "tune.models",
        "tune.datasets",
        "tune.training",
        "tune.generation",
        "tune.evaluation",
        "tune.report",
        "tune.hub",
        "tune.sharing",
    ),
    ("tune.config", "tune.modules", "tune.checkpoints", "tune.tokenizers", "tune.data"),
    ("tune.utils",),
    ("tune.errors", "tune"),
]
# The foundation rooms may lean on each other in these directions only.
PEERS = {
    ("tune.checkpoints", "tune.modules"),  # a checkpoint is read into a decoder and names its parts
    ("tune.data", "tune.tokenizers"),  # messages become tokens
}
# The one name that looks up: tune.utils hands on TuneArgumentParser, lazily.
ALLOWED_UP = {("tune/utils/__init__.py", "tune.config.parser")}


def room_of(module: str) -> str | None:
    rooms = [room for floor in FLOORS for room in floor if module == room or module.startswith(room + ".")]
    return max(rooms, key=len) if rooms else None


def floor_of(room: str) -> int:
    return next(i for i, floor in enumerate(FLOORS) if room in floor)


def imported_modules(path: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which floor is reached"
            assert node.module is not None
            # `from tune import config` names the room in what is imported, not in the module.
            if node.module == "tune":
                modules.update(f"tune.{alias.name}" for alias in node.names)
            else:
                modules.add(node.module)
    return modules


def source_files() -> list[Path]:
    return sorted((ROOT / "tune").rglob("*.py")) + sorted((ROOT / "recipes").rglob("*.py"))


def violations(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    module = f"tune.{module}" if name.startswith("recipes/") else module  # tune/recipes is a link there
    own = room_of(module)
    assert own is not None, f"{name} stands in no room: give it a floor"
    problems = []
    for target in imported_modules(path):
        room = room_of(target)
        if room is None or room == own or (name, target) in ALLOWED_UP or (own, room) in PEERS:
            continue
        if floor_of(room) <= floor_of(own):
            problems.append(f"{name} ({own}) imports {target}")
    return problems


@pytest.mark.parametrize("path", source_files(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_go_down(path: Path) -> None:
    assert violations(path) == []


def test_the_check_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    culprit = tmp_path / "tune" / "data" / "culprit.py"
    culprit.parent.mkdir(parents=True)
    culprit.write_text("from tune.datasets import alpaca_dataset\nfrom tune import training\nimport torch\n")
    monkeypatch.setattr("test_layering.ROOT", tmp_path)
    assert len(violations(culprit)) == 2


def test_recipes_do_not_import_each_other() -> None:
    for path in (ROOT / "recipes").glob("*.py"):
        others = {m for m in imported_modules(path) if m.startswith("tune.recipes.")}
        allowed = {"tune.recipes.interfaces"} | {m for m in others if m.startswith("tune.recipes.params.")}
        assert others <= allowed, (
            f"{path.name} imports {sorted(others - allowed)}: recipes are copied, not shared"
        )
