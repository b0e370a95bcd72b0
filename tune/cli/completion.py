"""`tune completion`: scripts that let the shell complete commands, recipes, configs and parameters."""

from __future__ import annotations

import os
import sys

from tune.cli.arguments import Command, Given, Option, UsageError, nearest
from tune.cli.catalogue import RECIPES, list_configs, recipe_names
from tune.cli.recipe_lookup import find_target
from tune.errors import TuneError

SHELLS = ("bash", "zsh", "fish")

_BASH = """\
# eval "$(tune completion bash)"
_tune_complete() {
    local current="${COMP_WORDS[COMP_CWORD]}" line
    COMPREPLY=()
    while IFS= read -r line; do COMPREPLY+=("$line"); done < <(
        tune completion --words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 0 ]]; then compopt -o default 2>/dev/null; fi
    if [[ ${COMPREPLY[0]-} == *= ]]; then compopt -o nospace 2>/dev/null; fi
}
complete -F _tune_complete tune
"""

_ZSH = """\
# eval "$(tune completion zsh)"
_tune() {
    local -a found
    found=("${(@f)$(tune completion --words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n ${found[1]-} ]]; then
        if [[ ${found[1]} == *= ]]; then compadd -S '' -- $found; else compadd -- $found; fi
    else
        _files
    fi
}
compdef _tune tune
"""

_FISH = """\
# tune completion fish | source
function __tune_complete
    set -l words (commandline -opc) (commandline -ct)
    tune completion --words -- $words[2..-1] 2>/dev/null
end
complete -c tune -a '(__tune_complete)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


def run(given: Given) -> int:
    """Print the script for a shell, or (for the script) what a command line may go on with."""
    if "words" in given.switches:
        found = complete(given.operands)
        sys.stdout.write("".join(f"{word}\n" for word in found))
        return 0
    if len(given.operands) > 1:
        raise UsageError("tune completion takes one shell: tune completion bash")
    shell = given.operands[0] if given.operands else os.path.basename(os.environ.get("SHELL", ""))
    if shell not in _SCRIPTS:
        close = nearest(shell, SHELLS)
        hint = f"; did you mean {close}?" if close else ""
        raise UsageError(
            f"no completion for {shell or 'an unnamed shell'}; there is {', '.join(SHELLS)}{hint}"
        )
    sys.stdout.write(_SCRIPTS[shell])
    return 0


def complete(words: list[str]) -> list[str]:
    """Return what the last of `words` (those after ``tune``) may be completed to; nothing means a file."""
    from tune.cli.main import COMMANDS  # main imports this module's siblings by name

    *before, current = words or [""]
    recipes = [recipe.name for recipe in RECIPES]
    if not before:
        candidates = [*COMMANDS, *recipes, "--help", "--version"]
    elif before[0] in COMMANDS:
        candidates = _after_command(COMMANDS[before[0]], before[1:], current, recipes)
    else:
        candidates = _after_command("run", before, current, recipes)
    return [candidate for candidate in candidates if candidate.startswith(current)]


def _after_command(command: str, before: list[str], current: str, recipes: list[str]) -> list[str]:
    configs = [config.name for config in list_configs()]
    if before and before[-1] in ("--config", "-c"):
        return configs
    if current.startswith("-"):
        from tune.cli.main import load_command

        options = load_command(command).options
        return [flag for option in options for flag in option.flags if flag.startswith("--")] + ["--help"]
    words = [word for word in before if not word.startswith("-")]
    if command in ("run", "describe"):
        return _parameters(words[0], "=" if command == "run" else "") if words else recipes
    if command == "completion":
        return list(SHELLS)
    if before and before[-1] == "--recipe":
        return recipe_names()
    if command == "download":
        from tune.hub.short_names import SHORT_NAMES

        return [] if words else [name for family in SHORT_NAMES.values() for name in family]
    return {
        "ls": recipes,
        "schema": recipes,
        "cp": [] if words else recipes + configs,
        "cat": recipes + configs,
        "convert-ckpt": ["hf", "meta", "tune"] if before[-1:] == ["--to"] else [],
        "merge": [],
        "upload": [],
        "validate": configs if not words else _parameters("full_finetune", "="),
    }[command]


def _parameters(recipe: str, ending: str) -> list[str]:
    from tune.config.params import fields_of

    try:
        params = find_target(recipe).params
    except TuneError:  # half a word is not a recipe yet
        return []
    return [name + ending for name in fields_of(params)] if params else []


COMMAND = Command(
    name="completion",
    summary="Print a script that makes the shell complete tune.",
    usage="completion [bash|zsh|fish]",
    description=(
        "Prints a script after which the shell completes commands, recipes, configs and parameters with the Tab key."
    ),
    examples=(
        ('eval "$(tune completion bash)"', "for this session; add the line to ~/.bashrc for all of them"),
        ('eval "$(tune completion zsh)"', "the same in ~/.zshrc"),
        ("tune completion fish > ~/.config/fish/completions/tune.fish", "for fish"),
    ),
    run=run,
    operands=(("SHELL", "bash, zsh or fish; your own if left out."),),
    options=(Option(("--words",), "For the scripts: print what the words after -- may go on with."),),
)
