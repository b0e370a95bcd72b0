"""`tune validate`: judge a configuration, alone and on any machine."""

from __future__ import annotations

import sys
from pathlib import Path, PurePath
from typing import Any

from tune.cli.arguments import OVERRIDE, REMOVE, TRUST, Command, Given, Option, UsageError
from tune.cli.catalogue import RECIPES, find_config, find_recipe, read_recipe_key
from tune.cli.failures import EXIT_BAD_USAGE
from tune.cli.target import Target, find_target
from tune.cli.terminal import wants_color
from tune.config.diagnostics import Diagnostic, Source, to_json
from tune.errors import ConfigError


class FaultyConfig(ConfigError):
    """A config has faults that show without knowing its recipe; `resolution` has them."""

    def __init__(self, resolution: Any) -> None:
        super().__init__(resolution.report())
        self.resolution = resolution


def run(given: Given) -> int:
    """Validate one config; print the problems, or that there are none."""
    as_json = "json" in given.switches
    try:
        target, config, name = _choose(given)
        resolution = resolve_for(target, config, given)
    except FaultyConfig as error:
        _print_json(error.resolution.to_json()) if as_json else _print_problems(error.resolution)
        return EXIT_BAD_USAGE
    except (UsageError, ConfigError) as error:
        if not as_json:
            raise
        # Who asked for JSON gets JSON, also where it is the command line that is wrong.
        problem = Diagnostic("bad-command-line", "", str(error), Source("cli"))
        _print_json(to_json([problem], []))
        return EXIT_BAD_USAGE
    if as_json:
        _print_json(resolution.to_json())
    else:
        _print_report(resolution, target, name)
    code = 0 if resolution.ok else EXIT_BAD_USAGE
    if code == 0 and "preflight" in given.switches:
        from tune.cli.preflight import preflight

        code = preflight(resolution.params, stream=sys.stderr if as_json else sys.stdout)
    return code


def resolve_for(target: Target, config: Path | None, given: Given) -> Any:
    """Resolve `config` and the given overrides for `target`, without importing torch.

    Raises:
        ConfigError: ``--trust`` names no package, or nothing is known about the recipe's params.
    """
    from tune.config.resolve import resolve
    from tune.config.trust import parse_trust, trust

    trust(*parse_trust(given.all("trust")))
    if target.params is None:
        raise ConfigError(f"{target.name} declares no params class that can be read without running it")
    names = target.config_names
    return resolve(
        target.params,
        config=config,
        overrides=given.overrides,
        removals=given.all("remove"),
        recipe=names[0] if target.recipe is not None else None,
        recipe_aliases=names[1:],
    )


def _choose(given: Given) -> tuple[Target, Path, str]:
    """Return the recipe to judge by, the config, and what the user called it."""
    configs = given.operands + given.all("config")
    if len(configs) != 1:
        problem = (
            f"one config at a time, not {len(configs)} ({', '.join(configs)})" if configs else "which config?"
        )
        raise UsageError(f"{problem}; usage: tune validate CONFIG [KEY=VALUE ...]")
    config = find_config(configs[0])
    asked = given.one("recipe")
    if asked is not None:
        return find_target(asked), config, configs[0]
    named = _read_recipe(config)
    recipe = find_recipe(PurePath(named).name) if named is not None else None
    if recipe is None:
        raise UsageError(_no_recipe(configs[0], named))
    return find_target(recipe.name), config, configs[0]


def _read_recipe(config: Path) -> str | None:
    """Return the recipe a config says it is for.

    Raises:
        FaultyConfig: it does not say, and has faults that do not depend on the recipe.
    """
    named = read_recipe_key(config)
    if named is not None:
        return named
    from tune.config.resolve import Resolution, load_tree, peek_recipe

    tree = load_tree({}, config=config)
    errors = [problem for problem in tree.problems if problem.severity == "error"]
    if errors:
        raise FaultyConfig(Resolution(None, errors, [], files=tree.files))
    return peek_recipe(config)


def _no_recipe(config: str, named: str | None) -> str:
    names = ", ".join(recipe.name for recipe in RECIPES)
    if named is None:
        fix = f"add `recipe: {RECIPES[0].name}` to it, or give --recipe ({names})"
        return f"{config} does not say which recipe it is for: {fix}"
    # A path in the file is not followed: judging a config must not import what it names.
    return (
        f"{config} is for recipe {named!r}, which does not come with tune: give --recipe ({names}, or a path)"
    )


def _print_json(result: dict[str, Any]) -> None:
    import json  # not needed without --json

    sys.stdout.write(json.dumps(result, indent=2) + "\n")


def _print_problems(resolution: Any) -> None:
    report = resolution.report(color=wants_color(sys.stderr))
    if report:
        sys.stderr.write(report.rstrip("\n") + "\n")


def _print_report(resolution: Any, target: Target, name: str) -> None:
    _print_problems(resolution)
    if resolution.ok:
        count = len(resolution.warnings)
        noted = f", with {count} warning{'s' if count > 1 else ''}" if count else ""
        sys.stdout.write(f"{name}: valid for {target.name}{noted}\n")


COMMAND = Command(
    name="validate",
    summary="Check a config, every problem at once.",
    usage="validate CONFIG [--recipe RECIPE] [KEY=VALUE ...] [--remove KEY] [--json] [--preflight]",
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
        ("KEY=VALUE", "Overrides, as for `tune run`."),
    ),
    options=(
        Option(("--recipe", "-r"), "Recipe to judge it by, if not the one it names.", "RECIPE"),
        Option(("--config", "-c"), "The config, instead of CONFIG.", "CONFIG", many=True),
        OVERRIDE,
        REMOVE,
        TRUST,
        Option(("--json",), "Print the result as JSON."),
        Option(("--preflight",), "Also look at this machine: files, device, packages, memory."),
    ),
    takes_overrides=True,
)
