"""The command `tune`: finds the command or recipe that was meant, and turns every outcome into an exit code."""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence
from itertools import starmap

import tune
from tune.cli.arguments import Command, UsageError, check_operands, format_help, nearest, read_arguments
from tune.cli.catalogue import find_recipe, recipe_names
from tune.cli.exit_codes import exit_code_of
from tune.cli.launch_options import LAUNCH_FLAGS
from tune.cli.terminal import example, paint, say, section, width, wrap, wrap_usage
from tune.utils.streams import open_closed_streams

# Commands by what is typed, each in a file of its name (- becomes _); a value that differs makes a synonym.
_NAMES = (
    "run ls cp cat download convert-ckpt merge upload validate preview report "
    "share cache describe schema completion"
)
COMMANDS = {name: name for name in _NAMES.split()} | {"launch": "run"}
# What other tools call a thing, and what does it here.
_ELSEWHERE = {
    "train finetune fine-tune fit sft pretrain lora": "`tune run full_finetune` trains every weight, "
    "`tune run lora_finetune` adapters",
    "export convert save": "a run's latest/model is a Hugging Face folder; `tune convert-ckpt` and `tune merge` write "
    "others",
    "plot curves tensorboard": "`tune report RUN` draws the curves",
    "quantize": "`quantize_base=true` trains beside a base in 4 bits",
    "serve": "`tune chat RUN` talks to a model; other programs load its latest/model",
    "init new": "`tune cp CONFIG my.yaml` makes a config your own",
    "push publish": "`tune upload` sends a model to the hub",
    "zip archive package pack": "`tune share RUN` hands a run on",
    "score test bench benchmark": "`tune eval RUN` tells what a model is worth on held-out examples",
    "config": "`tune ls` lists configs, `tune cat` shows one, `tune describe RECIPE` its parameters",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tune` with `argv` (``sys.argv[1:]`` by default) and return its exit code.

    0: fine. 1: the run failed for a reason that was printed. 2: bad configuration or usage. 70: a bug of ours.
    129, 130, 138, 141, 143: ended by SIGHUP, Ctrl-C, SIGUSR1, a closed pipe, SIGTERM.
    """
    open_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # a terminal may know fewer characters than a config
            stream.reconfigure(errors="backslashreplace")
    try:
        _require_working_directory()
        code = _dispatch(arguments)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - the outermost: told apart by kind
        code = exit_code_of(error)
    return code


def _require_working_directory() -> None:
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UsageError("the working directory does not exist any more; cd to one that does") from error


def load_command(name: str) -> Command:
    """Return the command called `name`; its module is imported only now."""
    command: Command = importlib.import_module(f"tune.cli.{COMMANDS[name].replace('-', '_')}").COMMAND
    return command


def _dispatch(arguments: list[str]) -> int:
    first, *others = arguments or ["--help"]
    if first in ("--version", "-V"):
        say(f"tune {tune.__version__}\n")
        return 0
    if first in ("--help", "-h") or (first == "help" and not others):
        say(overview())
        return 0
    if first == "help":
        return _dispatch([others[0], "--help"])
    if first in COMMANDS:
        command = load_command(first)
        before_dashes = others[: others.index("--")] if "--" in others else others
        if COMMANDS[first] != "run" and any(word in ("--help", "-h") for word in before_dashes):
            say(format_help(command))
            return 0
        given = read_arguments(command, others)
        # beside overrides, or to complete them, a command counts its words itself
        if not command.takes_overrides and first != "completion":
            check_operands(command, given)
        return command.run(given)
    if first.partition("=")[0] in LAUNCH_FLAGS or find_recipe(first) is not None or os.path.isfile(first):
        return _run_recipe(arguments)
    raise UsageError(_unknown(first))


def _run_recipe(arguments: list[str]) -> int:
    """Run a recipe without the word `run`, with the options for many processes before its name or after it."""
    command = load_command("run")
    given = read_arguments(command, arguments)
    word = given.operands[0] if given.operands else ""
    if COMMANDS.get(word) == "run":
        del given.operands[0]
        if given.operands:
            given.tokens.remove((given.operands[0], None))
    elif word in COMMANDS:
        raise UsageError(f"{arguments[0]} goes with a recipe, not with `tune {word}`")
    return command.run(given)


def _unknown(word: str) -> str:
    if word.startswith("-"):
        return f"tune has no option {word.partition('=')[0]}; `tune --help` shows what there is"
    if word.endswith(".py") or "/" in word:
        return f"there is no file {word}; `tune ls` lists the recipes that come with tune"
    for words, answer in _ELSEWHERE.items():
        if word in words.split():
            return f"there is no command {word!r}: {answer}"
    close = nearest(word, [*COMMANDS, *recipe_names()])
    hint = (
        f"; did you mean `tune {close}`?"
        if close
        else "; `tune --help` lists the commands, `tune ls` the recipes"
    )
    return f"{word!r} is neither a command nor a recipe{hint}"


def overview() -> str:
    """Return what a bare `tune` says: every command in one line, and how to go on."""
    commands = [load_command(name) for name, file in COMMANDS.items() if name == file]
    examples = [
        ("tune ls", "what there is to run"),
        ("tune run full_finetune --config tiny/full_finetune", "a first run, on any laptop"),
        ("tune run full_finetune --help", "every parameter"),
        ("tune validate my.yaml", "is this config right?"),
        ("tune preview my.yaml", "what does its data teach?"),
        ("tune report out/tiny", "how did the run go?"),
        ("tune chat out/tiny", "talk to what was trained"),
        ("tune eval out/tiny data=held_out.jsonl --against base", "what is it worth?"),
        ("tune share out/tiny --redact --compress", "hand it on"),
    ]
    options = [("--help, -h", "Show this, or a command's own help."), ("--version, -V", "Show the version.")]
    has_room = max(len(line) for line, _ in examples) + 30 < width()
    tried = (
        section("try:", examples)
        if has_room
        else "\n".join([paint("try:", "bold"), *starmap(example, examples)])
    )
    parts = [
        wrap_usage("tune COMMAND ...   or   tune RECIPE --config CONFIG [KEY=VALUE ...]"),
        "\n".join(wrap("tune fine-tunes large language models: a config, a recipe, one command.", width())),
        section("commands:", [(command.name, command.summary) for command in commands]),
        tried,
        section("options:", options),
    ]
    return "\n\n".join(parts) + "\n"
