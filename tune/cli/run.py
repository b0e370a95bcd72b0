"""`tune run`: check everything that can be checked without torch, then run the recipe."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.cli.arguments import (
    CONFIG,
    HELP,
    OVERRIDE,
    REMOVE,
    TRUST,
    Command,
    Given,
    Option,
    UsageError,
    format_help,
    read_arguments,
)
from tune.cli.catalogue import find_config, find_recipe, list_configs
from tune.cli.exit_codes import EXIT_BAD_USAGE
from tune.cli.launch_options import LAUNCH_FLAGS, LAUNCH_OPTIONS, LaunchPlan, read_plan, settle
from tune.cli.preflight import refuse_what_is_missing
from tune.cli.recipe_lookup import Target, find_target
from tune.cli.recipe_words import refuse_other_words, take_operand, take_options
from tune.cli.run_file import Program, execute
from tune.cli.run_shared import TRUST_RECIPE, is_shared, run_shared
from tune.cli.terminal import command_line, paint, report_warning, say, width, wrap, wrap_usage
from tune.cli.torch_logging import count_gpus, importing_quietly
from tune.cli.validate import print_problems, resolve_for
from tune.config.reading import name_of
from tune.utils.exclusions import split_processes
from tune.utils.paths import expand_path
from tune.utils.ranks import get_world_size

if TYPE_CHECKING:
    from tune.config.resolution import Resolution

RESUME = "resume_from_checkpoint"  # set when a failed run is started again
SHARED_WORK = "data_parallel_shard_dim"  # a parameter of the recipes that many processes work on together


def run(given: Given) -> int:
    """Run a recipe, or show its help or plan."""
    asks_help = HELP.name in given.switches
    if not given.operands:
        if asks_help:
            say(format_help(COMMAND))
            return 0
        raise UsageError(
            "which recipe? `tune ls` lists them: tune run RECIPE --config CONFIG [KEY=VALUE ...]"
        )
    if is_shared(given.operands[0]):
        read = partial(read_arguments, COMMAND)
        return run_shared(given, lambda words: run(read(words)), lambda words: _judge(read(words)))
    target = find_target(given.operands[0], importing="dry_run" in given.switches)
    if not target.is_own:
        _warn_of_file_here("recipe", given.operands[0], target.file, ".py")
    name = given.one("config")
    config = None if name is None else find_config(name)
    if name is not None and config is not None and not os.path.exists(name):
        _warn_of_file_here("config", name, config, ".yaml", ".yml")
    if asks_help:
        return _show_help(target, config, given)
    take_options(target, given)
    take_operand(target, given)
    refuse_other_words(target, given, COMMAND)
    plan = read_plan(given)
    log_dir: Path | None = None
    resolution: Resolution[Any] | None = None
    if target.params is not None:
        resolution = resolve_for(target, config, given)
        if not resolution.ok:
            _refuse_another_recipes_config(resolution, target, name, given)
            print_problems(resolution)
            _hint_at_configs(target, config, resolution)
            return EXIT_BAD_USAGE
        is_dry = "dry_run" in given.switches
        _refuse_many_processes(target, plan)
        if not is_dry and not target.is_own:  # what one's own recipe does with them only it knows
            refuse_what_is_missing(resolution.params)
        asked = plan
        plan = settle(asked, getattr(resolution.params, "device", None), count_gpus, is_run=not is_dry)
        _refuse_many_processes(target, plan)  # now that they are counted
        # A dry run that asks for no processes is about the configuration; what is counted here says nothing elsewhere.
        if not is_dry or (plan.needs_launcher and not asked.count):
            _refuse_another_mesh(plan, resolution.params)
        if is_dry:
            print_problems(resolution)
            say(_plan(target, config, given, resolution, plan))
            return 0
        output_dir = getattr(resolution.params, "output_dir", None)
        log_dir = expand_path(output_dir) / "logs" if output_dir else None
    elif "dry_run" in given.switches:
        raise UsageError(
            f"{target.name} declares no params class, so there is nothing to resolve without running it"
        )
    else:
        plan = settle(plan, None, count_gpus, is_run=False)  # which device it uses only the file knows
    program = _program(target, config, given, resolution)
    if not plan.needs_launcher:
        return execute(program)
    with importing_quietly():
        from tune.cli.launch import launch  # imports torch

    again = _resuming(program, target) if plan.max_restarts else program
    return launch(program, plan, again=again, log_dir=log_dir)


def _judge(given: Given) -> int:
    """Tell what is wrong with a config, as `run` does, and return the exit code."""
    target = find_target(given.operands[0])
    if target.params is None:
        return 0
    take_options(target, given)
    resolution = resolve_for(target, Path(given.one("config") or ""), given)
    if not resolution.ok:
        print_problems(resolution)
    return 0 if resolution.ok else EXIT_BAD_USAGE


def _warn_of_file_here(kind: str, name: str, found: Path, *endings: str) -> None:
    """Say so where a file of that name lies here, but is not the one meant."""
    for here in (Path(name + ending) for ending in endings):
        if os.path.isfile(here) and not here.samefile(found):
            report_warning(f"{name} is the {kind} that comes with tune; for the file here, write ./{here}")


def _refuse_many_processes(target: Target, plan: LaunchPlan) -> None:
    """Refuse to start a recipe of ours, or a copy, many times that would do the same thing in each process."""
    from tune.config.params import fields_of

    if not plan.needs_launcher or target.recipe is None or target.params is None:
        return  # what processes of one's own do together, only the recipe knows
    if not target.recipe.shares_work and SHARED_WORK not in fields_of(target.params):
        raise UsageError(
            f"{target.name} works in one process: several would each do all of it. Leave out --nproc_per_node, "
            "--num_gpus and --nnodes; CUDA_VISIBLE_DEVICES chooses the GPU"
        )


def _refuse_another_mesh(plan: LaunchPlan, params: Any) -> None:
    """Refuse a mesh that these processes cannot make up, or carry out: before they start, and once."""
    if not hasattr(params, "process_choices"):
        return
    # Where another launcher has started this command, it has said how many there are.
    world_size = plan.nnodes * plan.nproc_per_node if plan.needs_launcher else get_world_size()
    split_processes(replace(params.process_choices(), world_size=world_size))


def _refuse_another_recipes_config(
    resolution: Resolution[Any], target: Target, config: str | None, given: Given
) -> None:
    """Where a config is right, but for another recipe, say only that: every further problem follows from it."""
    stated = find_recipe(resolution.recipe) if resolution.recipe is not None else None
    if stated is None or config is None or not any(item.code == "wrong-recipe" for item in resolution.errors):
        return
    if resolve_for(find_target(stated.name), find_config(config), given).ok:
        raise UsageError(
            f"{config} is a config for the recipe {resolution.recipe}, not for {target.name}; "
            f"run it with: tune run {resolution.recipe} --config {config}"
        )


def _forwarded(given: Given, config: Path | None) -> list[str]:
    """Return the arguments for the recipe itself: all but ours, and the config as a path it can open."""
    arguments: list[str] = []
    for token, value in given.tokens:
        if token == CONFIG.flags[0]:
            arguments += [token, str(config)]
        elif token not in LAUNCH_FLAGS:
            arguments += [token] if value is None else [token, value]
    return arguments


def _program(
    target: Target, config: Path | None, given: Given, resolution: Resolution[Any] | None
) -> Program:
    """Return what is to be run; the recipe need not resolve again what is known whole."""
    is_for_recipe = given.unknown or given.operands[1:]  # to judge the rest
    if is_for_recipe or (target.recipe is None and hasattr(target.params, "recipe_names")):
        resolution = None
    return Program(
        target.file, target.is_own, _forwarded(given, config), resolution, tuple(given.all("trust"))
    )


def _resuming(program: Program, target: Target) -> Program:
    """Return the program for a run that goes on after a failure, as far as the recipe can."""
    from tune.config.params import fields_of

    if target.params is None or RESUME not in fields_of(target.params):
        return program
    return replace(program, arguments=[*program.arguments, f"{RESUME}=true"], resolution=None)


def _hint_at_configs(target: Target, config: Path | None, resolution: Resolution[Any]) -> None:
    """Where parameters are missing since there is no config, say which configs there are."""
    if config is not None or target.recipe is None or not resolution.lacks_values:
        return
    names = [item.name for item in list_configs() if item.recipe in target.config_names]
    if names:
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        say(
            f"\nNo --config was given. Configs for {target.recipe.name}: {shown} (see `tune ls`).\n",
            sys.stderr,
        )


def _plan(
    target: Target, config: Path | None, given: Given, resolution: Resolution[Any], plan: LaunchPlan
) -> str:
    arguments = [argument for argument in _forwarded(given, config) if argument != "--dry-run"]
    starter = plan.torchrun() if plan.needs_launcher else ["python"]
    command = shlex.join([*starter, str(target.file), *arguments])
    shown = "" if config is None else name_of(config)
    lines = [
        resolution.dump().rstrip("\n"),
        "",
        paint("# plan", "bold"),
        f"#   recipe:    {target.file}",
        f"#   config:    {shown or '(none)'}",
        f"#   processes: {plan.describe()}",
        *([f"#   the same:  {command}"] if shown == str(config or "") else []),
        "# Nothing was run: --dry-run.",
    ]
    return "\n".join(lines) + "\n"


def _show_help(target: Target, config: Path | None, given: Given) -> int:
    """Print every parameter of a recipe; with a config also what each is set to, and where."""
    if target.params is None:
        # Only the recipe itself can say: its own parser prints the help.
        return execute(Program(target.file, target.is_own, [*_forwarded(given, config), "--help"]))
    from tune.cli.describe import format_parameters
    from tune.config.params import fields_of

    values = ""
    if config is not None:
        resolution = resolve_for(target, config, given)
        print_problems(resolution)
        values = f"{paint('As configured:', 'bold')}\n{resolution.dump()}" if resolution.ok else ""
    options = "--config CONFIG [KEY=VALUE ...] [--dry-run]"
    if target.recipe is not None and target.recipe.operand and not target.is_own:
        options = "DIR [--config CONFIG] [KEY=VALUE ...] [--dry-run]"
        options += "".join(f" [--{name}{' ' * bool(value)}{value}]" for name, value in target.recipe.options)
    options_of_command = ", ".join(option.flags[0] for option in COMMAND.options)
    head = [
        wrap_usage(f"tune run {target.name} {options}"),
        "",
        *wrap((target.params.__doc__ or "").strip().split("\n")[0], width()),
        *wrap(
            "Set any of these in a config, or as KEY=VALUE. `tune describe` tells more about one of them:",
            width(),
        ),
        command_line(f"tune describe {target.name} optimizer")
        if "optimizer" in fields_of(target.params)
        else "",
        "",
        format_parameters(fields_of(target.params).values()),
        values,
        *wrap(f"The command's own options: {options_of_command} (`tune run --help`).", width()),
    ]
    say("\n".join(head) + "\n")
    return 0


COMMAND = Command(
    name="run",
    summary="Run a recipe (also `tune RECIPE ...` and `tune launch`).",
    description=(
        "Checks the config and the overrides, then runs the recipe. RECIPE is a name from `tune ls` or the path of "
        "your own copy. Options and overrides may come in any order; what is set on the command line beats the "
        "config, and the config beats the defaults.\n\n"
        "`tune run RECIPE --help` shows every parameter; with --config also what each is set to, and where."
    ),
    examples=(
        ("tune run full_finetune --config tiny/full_finetune", "train the bundled tiny model"),
        (
            "tune run full_finetune --config llama2/7B_full model_checkpoint=DIR dataset.source=my.jsonl lr=1e-5",
            "your own data and learning rate",
        ),
        ("tune run full_finetune --config llama2/7B_full ~clip_grad_norm --dry-run", "look without running"),
        ('tune run generate model_checkpoint=DIR prompt="Once upon a time"', "no config needed"),
        ("tune run ./mine.py --config my.yaml", "your copy of a recipe"),
        ("tune run tiny-shared.zip", "what `tune share` wrote, again"),
        ("tune run --nproc_per_node 4 full_finetune --config llama2/7B_full", "four processes, a GPU each"),
        (
            "tune run --nnodes 2 --nproc_per_node 8 --rdzv_endpoint node0:29400 full_finetune --config my.yaml",
            "two machines: the same command on both",
        ),
    ),
    run=run,
    operands=(
        ("RECIPE", "A name from `tune ls`, a .py file, or a shared run."),
        ("[KEY=VALUE ...]", "Set a parameter; ~KEY removes one."),
    ),
    options=(
        CONFIG,
        OVERRIDE,
        REMOVE,
        TRUST,
        Option((TRUST_RECIPE,), "Run the recipe of a shared run, where it is not tune's."),
        Option(("--dry-run",), "Print the resolved parameters and what would run, then stop."),
        *LAUNCH_OPTIONS,
    ),
    takes_overrides=True,
    passes_on=True,
)
