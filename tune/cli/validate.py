"""`tune validate`: judge a configuration, alone and on any machine."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.cli.arguments import OVERRIDE, REMOVE, TRUST, Command, Given, Option, UsageError, nearest
from tune.cli.catalogue import RECIPES, Recipe, find_config, find_recipe, read_recipe_key, recipe_names
from tune.cli.exit_codes import EXIT_BAD_USAGE
from tune.cli.recipe_lookup import Target, find_target
from tune.cli.terminal import say, wants_color
from tune.config.diagnostics import Diagnostic, Source, to_json
from tune.errors import ConfigError, TuneError

if TYPE_CHECKING:
    from tune.config.resolution import Resolution

# The options that choose a config and its recipe, and change it.
CHOICE = (
    Option(("--recipe", "-r"), "Recipe it is for, if not the one it names.", "RECIPE"),
    Option(("--config", "-c"), "The config, instead of CONFIG.", "CONFIG", many=True),
    *(OVERRIDE, REMOVE, TRUST),
)
_OF_THE_PARAMS = ("unknown-key", "missing-required", "inconsistent")


def run(given: Given) -> int:
    """Validate one config; print the problems, or that there are none."""
    with ExitStack() as stack:
        return _run(given, stack)


def _run(given: Given, stack: ExitStack) -> int:
    as_json = "json" in given.switches
    try:
        config, name = choose_config(given, COMMAND)
        config = _unpack(config, stack)
        target, stated = choose_target(given, config)
        resolution = resolve_for(target, config, given)
        if stated is not None:
            judge_stated(resolution, stated, config, target)
    except TuneError as error:
        if not as_json:
            raise
        # Who asked for JSON gets JSON, also where it is the command line that is wrong.
        problem = Diagnostic("bad-command-line", "", str(error), Source("cli"))
        say(json.dumps(to_json([problem], []), indent=2) + "\n")
        return EXIT_BAD_USAGE
    if as_json:
        say(json.dumps(resolution.to_json(), indent=2) + "\n")
    else:
        print_problems(resolution)
    if not resolution.ok:
        return EXIT_BAD_USAGE
    if not as_json:
        count = len(resolution.warnings)
        noted = f", with {count} warning{'s' if count > 1 else ''}" if count else ""
        say(f"{name}: valid for {target.name}{noted}\n")
    if "preflight" not in given.switches:
        if not as_json:
            say(
                "Not looked at: files, folders, packages, device and memory (--preflight does).\n", sys.stderr
            )
        return 0
    from tune.cli.preflight import preflight

    return preflight(resolution.params, stream=sys.stderr if as_json else sys.stdout)


def _unpack(config: Path, stack: ExitStack) -> Path:
    """Return the config of a zip that `tune share` wrote, called by the zip's name; any other as it is."""
    if config.suffix.lower() != ".zip":
        return config
    from tune.config.reading import called
    from tune.sharing.opening import open_shared
    from tune.sharing.staging import staging

    place = stack.enter_context(staging(Path(tempfile.gettempdir()) / "run"))
    opened = open_shared(config, place / "run")
    stack.enter_context(called(opened.config, f"{config}/config.yaml"))
    return opened.config


def resolve_for(target: Target, config: Path | None, given: Given) -> Resolution[Any]:
    """Resolve `config` and the given overrides for `target`, without importing torch.

    Raises:
        ConfigError: ``--trust`` names no package, or nothing is known about the recipe's params.
    """
    from tune.config.resolve import resolve
    from tune.config.trust import parse_trust, trust

    trust(*parse_trust(given.all("trust")))
    if target.params is None:
        raise ConfigError(f"{target.name} declares no params class")
    names = target.config_names
    resolution: Resolution[Any] = resolve(
        target.params,
        config=config,
        overrides=given.overrides,
        removals=given.all("remove"),
        recipe=names[0] if target.recipe is not None else None,
        recipe_aliases=names[1:],
    )
    resolution.errors[:] = [_name_the_owner(error, target) for error in resolution.errors]
    return resolution


def _name_the_owner(error: Diagnostic, target: Target) -> Diagnostic:
    """Where a key is unknown because it is a parameter of another recipe, say so; no near name is meant then."""
    belongs_to_a_component = error.suggestion is not None and "." in error.suggestion
    if error.code != "unknown-key" or target.recipe is None or belongs_to_a_component:
        return error
    from tune.config.foreign_names import foreign_names
    from tune.config.params import fields_of

    key = error.path.partition(".")[0]
    for name in (key, *foreign_names().renamed.get(key.lower(), ())):
        owners = [recipe.name for recipe in RECIPES if name in fields_of(recipe.load_params())]
        if target.recipe.name in owners:
            return error
        if owners and (name == key or error.suggestion is None):
            called = "" if name == key else f" ({name}, as it is called here)"
            names = " and ".join(", ".join(owners).rsplit(", ", 1))
            owner = f"{names} {'has' if len(owners) == 1 else 'have'} it"
            message = f"{target.recipe.name} has no parameter {key!r}{called}; {owner}: remove it, or use that recipe"
            return replace(error, message=message, suggestion=None)
    return error


def choose_config(given: Given, command: Command) -> tuple[Path, str]:
    """Return the config that `command` is given, and what the user called it."""
    configs = given.operands + given.all("config")
    if len(configs) != 1:
        problem = (
            f"one config at a time, not {len(configs)} ({', '.join(configs)})" if configs else "which config?"
        )
        raise UsageError(f"{problem}; usage: {command.usage}")
    return find_config(configs[0]), configs[0]


def choose_target(given: Given, config: Path) -> tuple[Target, str | None]:
    """Return the recipe to judge by; and, where that is a guess, what the config itself says ("" if nothing)."""
    asked = given.one("recipe")
    if asked is not None:
        return find_target(asked, importing=True), None
    from tune.config.resolve import load_tree, read_recipe_name

    set_here = [item for item in given.overrides if item.startswith("recipe=")]
    root = load_tree({}, config=config, overrides=set_here).root
    stated = (
        read_recipe_name(root) or read_recipe_key(config) or ""
    )  # the text still says it where YAML is broken
    recipe = find_recipe(stated)
    if recipe is not None:
        return find_target(recipe.name), None
    return find_target(_most_like(root.entries, config, given).name), stated


def _most_like(keys: Iterable[str], config: Path, given: Given) -> Recipe:
    """Return the recipe that knows the most of a config's keys; where several do, the one that finds least wrong."""
    from tune.config.params import fields_of
    from tune.config.resolve import resolve

    def rank(recipe: Recipe) -> tuple[int, int]:
        params = recipe.load_params()
        faults = resolve(
            params, config=config, overrides=given.overrides, removals=given.all("remove")
        ).errors
        return len(set(keys) & fields_of(params).keys()), -len(faults)

    return max(RECIPES, key=rank)


def judge_stated(resolution: Resolution[Any], stated: str, config: Path, target: Target) -> None:
    """Say what the judgement rests on: the config names no recipe, or one that does not come with tune."""
    names = ", ".join(recipe.name for recipe in RECIPES)
    if not stated:
        message = f"{config} does not say which recipe it is for, and is judged as one for {target.name}; "
        message += f"add `recipe: {target.name}` to it, or give --recipe ({names})"
        place = Source("file", str(config))
        resolution.warnings.append(Diagnostic("no-recipe", "recipe", message, place, severity="warning"))
        return
    # A path in the file is not followed: judging a config must not import what it names.
    message = f"no recipe {stated!r} comes with tune ({names}); for a file of your own give --recipe PATH"
    close = nearest(stated, recipe_names())
    strange = {item.path for item in resolution.errors if item.code == "unknown-key"}
    known = [path for path in resolution.places if "." not in path]
    if len(strange) > len(known):  # its parameters are others, and this judgement says nothing
        resolution.errors[:] = [item for item in resolution.errors if item.code not in _OF_THE_PARAMS]
    resolution.errors[:] = [
        replace(error, code="unknown-recipe", message=message, suggestion=close)
        if error.code == "wrong-recipe"
        else error
        for error in resolution.errors
    ]


def print_problems(resolution: Resolution[Any]) -> None:
    """Write all errors and warnings to standard error."""
    report = resolution.report(color=wants_color(sys.stderr))
    if report:
        say(report.rstrip("\n") + "\n", sys.stderr)


COMMAND = Command(
    name="validate",
    summary="Check a config, every problem at once.",
    description=(
        "Checks a config without running anything: every key known, every value of the right type and in range, "
        "every component there and given arguments it takes. All problems are shown at once, each with its line "
        "and the fix. It works on any machine; --preflight also looks at this one: files, device, optional "
        "packages and memory.\n\n"
        "Exit code: 0 valid, 2 not valid, 70 a bug in tune."
    ),
    examples=(
        ("tune validate my.yaml", "for the recipe that its `recipe:` key names"),
        ("tune validate llama2/7B_full lr=1e-4 ~clip_grad_norm", "with changes"),
        (
            "tune validate my.yaml --recipe ./mine.py --json",
            "for a recipe of your own, for a program to read",
        ),
    ),
    run=run,
    operands=(
        ("CONFIG", "A name from `tune ls`, or a path."),
        ("[KEY=VALUE ...]", "Overrides, as for `tune run`."),
    ),
    options=(
        *CHOICE,
        Option(("--json",), "Print the result as JSON."),
        Option(("--preflight",), "Also look at this machine: files, device, packages, memory."),
    ),
    takes_overrides=True,
)
