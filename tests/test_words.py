"""Words and imports that a reader can rely on: docstrings, names of tests, and no circle among modules."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("tune", "recipes", "scripts", "benchmarks")
MAX_TEST_NAME = 60


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Return what a file consists of; each is parsed once."""
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def functions(*folders: str) -> Iterator[tuple[Path, ast.FunctionDef]]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in nodes(path):
                if isinstance(node, ast.FunctionDef):
                    yield path, node


def test_docstrings_begin_with_the_plain_verb() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path, node in functions(*SOURCES)
        if (ast.get_docstring(node) or "").startswith(("Returns ", "Yields ", "Raises "))
    ]
    assert wrong == []


def test_names_of_tests_fit_into_a_line() -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    names = [
        name for text in texts for name in re.findall(r"^ *(?:async )?def (test_\w+)", text, re.MULTILINE)
    ]
    assert [name for name in names if len(name) > MAX_TEST_NAME] == []
    assert len(names) > 500


def imports() -> dict[str, set[str]]:
    """Return what each module imports of ours: at its top, in functions, and for the type checker alone."""
    files = {}
    for folder in ("tune", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix().removesuffix(".py").removesuffix("/__init__")
            files[("tune." if folder == "recipes" else "") + name.replace("/", ".")] = path
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        found[name] = set()
        for node in nodes(path):
            if isinstance(node, ast.ImportFrom) and node.module:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= {target if target in files else node.module for target in inner}
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
        # A door that hands on the names of its package is entered by those inside it, too.
        found[name] = {t for t in found[name] if t in files and t != name and not name.startswith(f"{t}.")}
    return found


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Return groups of modules that reach each other, by Tarjan's algorithm."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[str] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph.get(node, ()):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(" -> ".join(sorted(group)))

    for node in graph:
        if node not in index:
            visit(node)
    return sorted(groups)


def test_there_is_no_circle_of_imports() -> None:
    assert circles(imports()) == []


def test_the_check_of_circles_can_fail() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a -> b -> c"]
