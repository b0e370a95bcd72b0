"""`tune cp`: make a recipe or a config your own."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path

from tune.cli.arguments import Command, Given, Option, UsageError
from tune.cli.cat import read_file
from tune.cli.catalogue import Recipe, example_config, find_recipe, find_source, read_recipe_key
from tune.cli.recipe_lookup import find_target
from tune.cli.terminal import say
from tune.errors import TuneError

SCHEMA_FOLDER = ".tune"
_MODELINE = "# yaml-language-server: $schema="


def run(given: Given) -> int:
    """Copy one recipe or config, and say what to run next."""
    to = given.one("to")
    if to is not None and given.operands[1:]:
        raise UsageError(f"where to write is said twice: {given.operands[1]} and --to {to}")
    name = given.operands[0]
    source, recipe = find_source(name)
    target = _choose_target(source, "".join(given.operands[1:]) if to is None else to)
    text = read_file(source)
    if recipe is None and source.suffix == ".py":
        raise UsageError(f"{name} is neither a recipe nor a config of `tune ls`")
    owner = find_recipe(read_recipe_key(source) or "") if recipe is None else None
    if recipe is None:
        text = _with_modeline(text, owner)
    _write(target, text, force="force" in given.switches, source=source)
    if owner is not None:
        _write_schema(target.parent, owner)
    lines = [f"Copied to {target}"]
    if steps := _next_steps(target, recipe, owner):
        lines += ["Change it, then:", *steps]
    say("\n".join(lines) + "\n")
    return 0


def _choose_target(source: Path, wanted: str) -> Path:
    """Return the file to write: `wanted`, a file of the same name inside it if it is a folder, with the ending."""
    target = Path(os.path.expanduser(wanted))
    if not wanted or wanted.endswith(("/", os.sep)) or os.path.isdir(target):
        return target / source.name
    endings = (".yaml", ".yml") if source.suffix in (".yaml", ".yml") else (source.suffix,)
    return target if target.suffix in endings else target.with_name(target.name + endings[0])


def _write(target: Path, text: str, *, force: bool, source: Path) -> None:
    try:
        if target.exists() and target.samefile(source):
            raise UsageError(f"{target} is the file itself; give the copy another name")
        target.parent.mkdir(parents=True, exist_ok=True)
        # "x" refuses a file that is there, also one that appeared a moment ago
        with target.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        if target.exists() and not target.is_dir():
            raise UsageError(f"{target} exists already; --force overwrites it") from error
        raise TuneError(f"{target} cannot be written: {error.filename} is not a folder") from error
    except OSError as error:
        raise TuneError(f"{target} cannot be written: {error.strerror}") from error


def _with_modeline(text: str, recipe: Recipe | None) -> str:
    """Return the config with the line that tells editors which keys there are."""
    lines = [line for line in text.splitlines(keepends=True) if not line.startswith(_MODELINE)]
    if recipe is None:
        return "".join(lines)
    return f"{_MODELINE}{SCHEMA_FOLDER}/{recipe.name}.schema.json\n" + "".join(lines)


def _write_schema(folder: Path, recipe: Recipe) -> None:
    """Put the schema beside the config, where the line in it points; it moves along with the project."""
    from tune.cli.schema import schema_text

    file = folder / SCHEMA_FOLDER / f"{recipe.name}.schema.json"
    with contextlib.suppress(OSError):  # editors do without; the config has been written
        file.parent.mkdir(exist_ok=True)
        file.write_text(schema_text(find_target(recipe.name)), encoding="utf-8")


def _next_steps(target: Path, recipe: Recipe | None, owner: Recipe | None) -> list[str]:
    """Return the commands for a copied recipe, or for a config of the recipe `owner`."""
    shown = shlex.quote(str(target))
    if owner is not None:
        return [f"  tune validate {shown}", f"  tune run {owner.name} --config {shown}"]
    if recipe is None:
        return []
    if not target.is_absolute():
        shown = shlex.quote(f".{os.sep}{target}")
    config = example_config(recipe)
    return [f"  tune run {shown} --config {config}" if config else f"  tune run {shown} --help"]


COMMAND = Command(
    name="cp",
    summary="Copy a recipe or config to make it your own.",
    description=(
        "Copies a recipe or a config that comes with tune. A copied config gets a line with which editors complete "
        "and check keys as you type (its schema is written to .tune/ beside it); a copied recipe runs as it stands.\n\n"
        "Folders are created; a file that exists is overwritten only with --force."
    ),
    examples=(
        ("tune cp llama2/7B_full my.yaml", "a config, under a new name"),
        ("tune cp full_finetune recipes/mine.py", "a recipe, into a folder"),
        ("tune cp generate --to mine/", "into a folder, under its own name"),
    ),
    run=run,
    operands=(
        ("RECIPE|CONFIG", "A name from `tune ls`."),
        ("[DEST]", "File or folder to write to; the current folder if left out."),
    ),
    options=(
        Option(("--to",), "Where to write, instead of DEST.", "DEST"),
        Option(("--force", "-f"), "Overwrite a file that exists."),
    ),
)
