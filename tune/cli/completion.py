"""`tune completion`: scripts that let the shell complete commands, recipes, configs and parameters."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tune.cli.arguments import (
    Command,
    Given,
    Option,
    UsageError,
    check_operands,
    did_you_mean,
    read_arguments,
)
from tune.cli.catalogue import RECIPES, configs_of, find_config, find_recipe, list_configs, read_recipe_key
from tune.cli.recipe_lookup import find_target
from tune.cli.terminal import say
from tune.errors import TuneError

if TYPE_CHECKING:
    from tune.config.fields import ParamInfo

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
        say("".join(f"{word}\n" for word in found))
        return 0
    check_operands(COMMAND, given)
    shell = given.operands[0] if given.operands else os.path.basename(os.environ.get("SHELL", ""))
    if shell not in _SCRIPTS:
        known = f"there is {', '.join(_SCRIPTS)}{did_you_mean(shell, list(_SCRIPTS))}"
        raise UsageError(f"no completion for {shell or 'an unnamed shell'}; {known}")
    say(_SCRIPTS[shell])
    return 0


def complete(words: list[str]) -> list[str]:
    """Return what the last of `words` (those after ``tune``) may be completed to; nothing means a file."""
    from tune.cli.main import COMMANDS, load_command  # main imports this module's siblings by name

    *before, current = words or [""]
    is_cut = "=" in (current, *before[-1:])  # bash takes words apart at =, and wants the part behind it alone
    if is_cut:
        before, current = (
            (before[:-2], f"{before[-2]}={current}") if current != "=" else (before[:-1], f"{before[-1]}=")
        )
    if not before:
        candidates = [*COMMANDS, *_named("RECIPE"), "--help", "--version"]
    else:
        first, others = (before[0], before[1:]) if before[0] in COMMANDS else ("run", before)
        try:
            candidates = _after(load_command(first), others, current)
        except TuneError:  # half a word is not a recipe yet
            candidates = []
    found = [candidate for candidate in candidates if candidate.startswith(current)]
    return [candidate.partition("=")[2] for candidate in found] if is_cut else found


def _after(command: Command, before: list[str], current: str) -> list[str]:
    """Return what may follow the words `before` of a command: an option, the value of one, or an operand."""
    if current.startswith("-"):
        return [flag for option in command.options for flag in option.flags if flag.startswith("--")] + [
            "--help"
        ]
    for option in command.options:
        if option.metavar and before[-1:] and before[-1] in option.flags:
            about = read_arguments(command, before[:-1]).operands
            return list(option.choices) or _named(option.metavar, *about[:1], current=current)
    words = read_arguments(command, before).operands
    kinds = [kind.strip("[.] ") for kind, _ in command.operands[len(words) :]]
    return _named(kinds[0], *words[:1], current=current) if kinds else []


def _named(kinds: str, about: str = "", *, current: str = "") -> list[str]:
    """Return the names of what the help calls `kinds`; those of parameters and configs fit the recipe `about`.

    Args:
        kinds: one, or several with | between them.
        about: a recipe or a config.
        current: what there is of the word: a parameter's name gets its values once it is whole.
    """
    found: list[str] = []
    for kind in kinds.split("|"):
        if kind == "RECIPE":
            found += [recipe.name for recipe in RECIPES]
        elif kind == "CONFIG":
            recipe = find_recipe(about)
            found += [config.name for config in list_configs()] if recipe is None else configs_of(recipe)
        elif kind == "SHELL":
            found += _SCRIPTS
        elif kind == "MODEL":
            from tune.hub.short_names import SHORT_NAMES

            found += [name for family in SHORT_NAMES.values() for name in family]
        elif kind in ("PARAM", "KEY", "KEY=VALUE") and about:
            infos, mark = _parameters(about), "=" if "=" in kind else ""
            name, equals, _ = current.partition("=")
            owner = infos.get(name.partition(".")[0])
            if equals:
                found += [f"{name}={value}" for value in _values(infos.get(name))]
            elif "." in name and owner is not None:
                found += [f"{owner.name}.{argument}{mark}" for argument in _arguments(owner)]
            else:
                found += [each + mark for each in infos]
    return found


def _values(info: ParamInfo | None) -> list[str]:
    """Return the values of a parameter that can be listed."""
    from tune.config.component_check import list_components

    if info is None:
        return []
    if info.slot is not None:
        return list(list_components(info.slot))
    specs = [info.spec, *info.spec.args]
    found = [str(choice) for spec in specs for choice in spec.choices]
    found += ["true", "false"] if any(spec.kind == "bool" for spec in specs) else []
    return [*found, "null"] if found and info.spec.nullable else found


def _arguments(info: ParamInfo) -> list[str]:
    """Return the arguments of the component that a parameter has where it is not set."""
    from tune.config.component_check import resolve_component

    default = info.default if isinstance(info.default, str) else getattr(info.default, "path", "")
    if info.slot is None or not default:
        return []
    resolved = resolve_component(default, info.slot)
    known = resolved.signature.parameters if resolved.signature is not None else {}
    return [name for name in known if name not in resolved.supplied]


def _parameters(about: str) -> dict[str, ParamInfo]:
    from tune.config.params import fields_of

    recipe = find_recipe(about)
    if recipe is None and not about.endswith(".py"):
        recipe = find_recipe(read_recipe_key(find_config(about)) or "")
        if recipe is None:  # a file that a config names is not looked at
            return {}
    params = find_target(about if recipe is None else recipe.name).params
    return dict(fields_of(params)) if params else {}


COMMAND = Command(
    name="completion",
    summary="Print a script that makes the shell complete tune.",
    description=(
        "Prints a script after which the shell completes commands, recipes, configs and parameters with the Tab key."
    ),
    examples=(
        ('eval "$(tune completion bash)"', "for this session; add the line to ~/.bashrc for all of them"),
        ('eval "$(tune completion zsh)"', "the same in ~/.zshrc"),
        ("tune completion fish > ~/.config/fish/completions/tune.fish", "for fish"),
    ),
    run=run,
    operands=(("[SHELL]", "bash, zsh or fish; your own if left out."),),
    options=(Option(("--words",), "For the scripts: print what the words after -- may go on with."),),
)
