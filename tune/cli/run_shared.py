"""`tune run SHARED`: a run that somebody has handed on, looked at, trusted, and run again."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.cli.arguments import Given, UsageError
from tune.cli.catalogue import find_recipe
from tune.cli.terminal import columns, paint, report_warning, say
from tune.config.overrides import is_override
from tune.utils.escape import escape_control
from tune.utils.paths import expand_path, get_recipes_dir

if TYPE_CHECKING:
    from tune.sharing.opening import OpenedRun

TRUST_RECIPE = "--trust-recipe"
_MAX_TEXT = 200


def is_shared(word: str) -> bool:
    """Tell whether `word` is the path of something that `tune share` writes."""
    if not (os.path.isdir(word) or word.lower().endswith(".zip")):
        return False
    from tune.sharing.opening import is_shared as holds_manifest

    return holds_manifest(word)


def run_shared(given: Given, run: Callable[[list[str]], int], judge: Callable[[list[str]], int]) -> int:
    """Run again what was shared, once it is known what it is and trusted.

    Args:
        given: the command line, the shared run first.
        run: the command `tune run` with other arguments.
        judge: tells of these what is wrong with the config, and returns the exit code; 0 for nothing.
    """
    from tune.config.reading import called
    from tune.sharing.opening import open_shared
    from tune.sharing.staging import staging

    if given.one("config") is not None:
        raise UsageError("a shared run brings its own config; KEY=VALUE changes it")
    path = expand_path(given.operands[0])
    with staging(Path(tempfile.gettempdir()) / "run") as place:
        opened = open_shared(path, place / "run")
        _show(opened)
        answers = [*_own_settings(opened, given), *_ask_for_missing(opened, given)]
        settings = _settings(opened, [*answers, *given.overrides])
        _tell_differences(opened, settings)
        stock = _require_trust(opened, path, given)
        output_dir = settings["output_dir"]
        rest = [word for token in given.tokens for word in token if word and word != TRUST_RECIPE]

        def words(home: Path) -> list[str]:
            recipe = stock or str(home / opened.manifest["recipe"]["file"])
            return [recipe, "--config", str(home / "config.yaml"), *answers, *rest]

        home = path
        if path.is_file():
            with called(opened.config, f"{given.operands[0]}/config.yaml"):
                if "dry_run" in given.switches:
                    return run(words(opened.folder))
                if code := judge(words(opened.folder)):
                    return code
            home = _keep(opened, output_dir)
        code = run(words(home))
        if code == 0 and "dry_run" not in given.switches:
            _compare(opened, expand_path(output_dir))
        return code


def _show(opened: OpenedRun) -> None:
    from tune.sharing.readme import summarize_run

    say(
        f"{paint('A shared run:', 'bold')} {opened.name}\n{columns(summarize_run(opened.record))}\n",
        sys.stderr,
    )


def _own_settings(opened: OpenedRun, given: Given) -> Iterator[str]:
    """Yield what is set here in any case: a place of its own, and a beginning at the beginning."""
    if not _is_set("output_dir", given.overrides):
        folder = Path("out") / opened.name.removesuffix("-shared")
        number = 2
        while (free := folder if number == 2 else folder.with_name(f"{folder.name}-{number - 1}")).exists():
            number += 1
        yield f"output_dir={free}"
        say(f"It writes to {free} (output_dir=... chooses another folder).\n", sys.stderr)
    if any(leaf.key == "resume_from_checkpoint" and leaf.value != "false" for leaf in opened.leaves):
        yield "resume_from_checkpoint=false"


def _ask_for_missing(opened: OpenedRun, given: Given) -> list[str]:
    """Return settings for what was left out and is not given: asked for on a terminal, refused elsewhere."""
    shorts = _short_forms(opened)
    missing = [
        leaf.key
        for leaf in opened.missing
        if leaf.key != "output_dir"
        and not any(_is_set(key, given.overrides) for key in (leaf.key, *shorts.get(leaf.key, ())))
        and not any(leaf.key == key or leaf.key.startswith(f"{key}.") for key in given.all("remove"))
    ]
    if not missing:
        return []
    if not sys.stdin.isatty():
        listed = " ".join(f"{key}=..." for key in missing)
        raise UsageError(f"these settings were left out of {opened.name}; give them: {listed}")
    answers = []
    for key in missing:
        try:
            answer = input(f"{escape_control(key)} was left out. Its value here: ").strip()
        except EOFError:
            answer = ""
        if not answer:
            raise UsageError(f"{key} was left out, and nothing was given for it: {key}=...")
        answers.append(f"{key}={answer}")
    return answers


def _short_forms(opened: OpenedRun) -> dict[str, list[str]]:
    """Return the flat names that stand for an argument of a component, by its dotted name."""
    from tune.config.params import fields_of

    recipe = find_recipe(_recipe_name(opened))
    shorts: dict[str, list[str]] = {}
    for info in fields_of(recipe.load_params()).values() if recipe is not None else ():
        if info.short_for:
            shorts.setdefault(info.short_for, []).append(info.name)
    return shorts


def _is_set(key: str, overrides: Sequence[str]) -> bool:
    """Tell whether overrides set a value, remove it, or replace what it is part of."""
    set_keys = [word.partition("=")[0].removeprefix("~") for word in overrides if is_override(word)]
    return any(key == each or key.startswith(f"{each}.") for each in set_keys)


def _settings(opened: OpenedRun, overrides: Sequence[str]) -> dict[str, str]:
    """Return the run's values by their dotted names, as far as they are known without reading the config in earnest."""
    settings = {leaf.key: leaf.value for leaf in opened.leaves}
    shorts = {short: key for key, names in _short_forms(opened).items() for short in names}
    for word in overrides:
        key, equals, value = word.partition("=")
        if equals:
            settings[shorts.get(key, key)] = value
    return settings


def _tell_differences(opened: OpenedRun, settings: Mapping[str, str]) -> None:
    """Say what is not here as it was where the run took place."""
    from tune.errors import TuneError
    from tune.sharing.inputs import describe_input
    from tune.training.saving.run_surroundings import describe_machine, describe_versions
    from tune.utils import get_device

    rows: list[tuple[str, str, str]] = []
    for name, here in describe_versions().items():
        there = _mapping(opened.record.get("versions")).get(name)
        if there != here and opened.record:
            rows.append((name, _shown(there or "none"), str(here or "none")))
    there = _mapping(opened.record.get("device"))
    with suppress(TuneError, RuntimeError, ValueError):
        about = describe_machine(get_device(settings.get("device", "cpu")))["device"]
        if there and (there.get("type"), there.get("name")) != (about["type"], about["name"]):
            rows.append(
                (
                    "device",
                    _shown(f"{there.get('name')} ({there.get('type')})"),
                    f"{about['name']} ({about['type']})",
                )
            )
    for key, told in opened.manifest["inputs"].items():
        found = describe_input(str(settings.get(key, "")))
        if found != told:
            rows.append((_shown(key), _shown(told), found or "nothing of that name"))
    if rows:
        head = (paint("What differs:", "bold"), "there", "here")
        say(columns([head, *rows]) + "\nThe numbers may differ, too.\n", sys.stderr)
    else:
        say("Versions, device and data are the same here.\n", sys.stderr)


def _require_trust(opened: OpenedRun, path: Path, given: Given) -> str:
    """Return the name of the recipe where it is one of this tune's; "" for another one, once it has been trusted.

    Raises:
        UsageError: it has not been.
    """
    name = _recipe_name(opened)
    file = opened.recipe
    if file is None:
        if find_recipe(name) is None:
            raise UsageError(
                f"{path} does not bring its recipe, {escape_control(name, _MAX_TEXT)!r}, and tune has none of that name"
            )
        report_warning(f"its recipe file was not shared; it runs with the {name} that is here")
        return name
    others = [each for each in file.parent.iterdir() if each != file and each.name != "__pycache__"]
    shipped = {each.read_bytes(): each.stem for each in get_recipes_dir().glob("*.py")}
    if not others and (same := shipped.get(file.read_bytes())) and find_recipe(same) is not None:
        return same
    what = f"{path} brings a recipe, {file.name}, that is not the one of this tune: it may do anything on this machine"
    if TRUST_RECIPE[2:].replace("-", "_") in given.switches:
        report_warning(what)
        return ""
    look = f"`unzip -p {path} '*/recipe/*'`" if path.is_file() else f"{path / 'recipe'}"
    hint = f"Read it first ({look})"
    if find_recipe(name) is not None:
        hint += f"; its config alone runs with the recipe that is here: tune run {name} --config config.yaml"
    if sys.stdin.isatty():
        say(f"{what}.\n{hint}.\n", sys.stderr)
        with suppress(EOFError):
            if input("Type yes to run it: ").strip().lower() == "yes":
                return ""
        raise UsageError("not trusted, so nothing was run")
    raise UsageError(f"{what}. {hint}. To run it: {TRUST_RECIPE}")


def _recipe_name(opened: OpenedRun) -> str:
    stated = next((leaf.value for leaf in opened.leaves if leaf.key == "recipe"), "")
    return stated or str(opened.manifest["recipe"].get("name"))


def _keep(opened: OpenedRun, output_dir: str) -> Path:
    """Return a folder beside the run's with what was in the zip: the run's own records name its config and recipe."""
    from tune.sharing.opening import is_shared, open_shared
    from tune.sharing.staging import staging

    out = expand_path(output_dir)
    home = out.with_name(f"{out.name}-shared")
    if os.path.lexists(home):
        manifests = [folder / "manifest.json" for folder in (home, opened.folder)]
        if not is_shared(str(home)) or len({each.read_bytes() for each in manifests}) > 1:
            raise UsageError(
                f"{home}, where the zip is unpacked to, exists already; choose another output_dir=..."
            )
        open_shared(home, opened.folder.with_name("again"))
        return home
    with staging(home) as place:
        os.rename(shutil.copytree(opened.folder, place / home.name), home)
    return home


def _compare(opened: OpenedRun, output_dir: Path) -> None:
    """Say how the run came out beside the one that was shared."""
    record, listed = {}, {}
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
        listed = json.loads((output_dir / "latest" / "manifest.json").read_text(encoding="utf-8"))["files"]
    there, here = (_mapping(each.get("fingerprint")).get("dataset") for each in (opened.record, record))
    if there and here and there != here:
        report_warning(f"the examples are others than those of the shared run: {there} there, {here} here")
    weights = opened.manifest["weights"]
    same = [name for name, digest in weights.items() if _mapping(listed.get(name)).get("sha256") == digest]
    losses = [_mapping(each.get("result")).get("loss") for each in (opened.record, record)]
    shown = " and ".join(
        f"{loss:.4f} {where}" for loss, where in zip(losses, ("there", "here")) if isinstance(loss, float)
    )
    if weights and len(same) == len(weights):
        say("The weights are those of the shared run, bit for bit.\n", sys.stderr)
    elif weights:
        say(f"The weights differ from those of the shared run; the loss was {shown}.\n", sys.stderr)


def _shown(text: object) -> str:
    return escape_control(text, _MAX_TEXT)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
