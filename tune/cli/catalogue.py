"""What can be run: the recipes, their files and params, and the configs that belong to them."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tune.cli.arguments import UsageError, nearest
from tune.cli.terminal import report_warning
from tune.utils.paths import get_recipes_dir

_RECIPE_KEY = re.compile(rb"^recipe[ \t]*:[ \t]+[\"']?([^\s\"'#]+)", re.MULTILINE)
_MAX_CONFIG_BYTES = 1_000_000
# What torchtune's names of configs end in: on how many devices they run, and how sparingly.
_VARIANT = re.compile(r"_(single_device|distributed|multinode|low_memory)$")

_EVALUATION = re.compile(r"\w+/evaluation")  # theirs, of each family


@dataclass(frozen=True)
class Recipe:
    """A recipe that comes with tune.

    Args:
        name: as it is typed, and the name of its file and that of its params without the ending.
        aliases: other names it answers to.
        operand: the parameter that a bare word on its command line is the value of; "" where there is none.
        options: parameters that may be given with dashes, too, as in other programs: --json for json=true; each with
            what its value is called in the usage, "" for a switch.
        shares_work: whether several processes do it together, though they share no training.
    """

    name: str
    aliases: tuple[str, ...] = ()
    operand: str = ""
    options: tuple[tuple[str, str], ...] = ()
    shares_work: bool = False

    @property
    def file(self) -> Path:
        """The recipe's file."""
        return get_recipes_dir() / f"{self.name}.py"

    @property
    def params(self) -> str:
        """Dotted path of its params dataclass."""
        words = self.name.split("_")
        return f"tune.recipes.params.{self.name}.{''.join(map(str.capitalize, words))}Params"

    def load_params(self) -> type:
        """Import and return the params dataclass (which does not import torch)."""
        module, _, name = self.params.rpartition(".")
        params: type = getattr(importlib.import_module(module), name)
        return params


RECIPES: tuple[Recipe, ...] = (
    Recipe("full_finetune", ("finetune_llm", "full_finetune_single_device", "full_finetune_distributed")),
    Recipe("lora_finetune", ("lora_finetune_single_device", "lora_finetune_distributed")),
    Recipe(
        "preference_finetune",
        ("dpo", "full_dpo_distributed", "lora_dpo_single_device", "lora_dpo_distributed"),
    ),
    Recipe("reward_finetune", ("reward",)),
    Recipe("distill", ("knowledge_distillation_single_device", "knowledge_distillation_distributed")),
    Recipe("generate", ("alpaca_generate",), operand="model_checkpoint"),
    Recipe("chat", operand="model_checkpoint"),
    Recipe(
        "evaluate",
        ("eval", "eleuther_eval"),
        operand="model_checkpoint",
        options=(("against", "RUN|MODEL"), ("json", "")),
        shares_work=True,
    ),
)


@dataclass(frozen=True)
class Config:
    """A config that comes with tune: the name it is called by, its file, and the recipe it says it is for."""

    name: str
    file: Path
    recipe: str | None


def find_recipe(name: str) -> Recipe | None:
    """Return the built-in recipe called `name` (also an alias, also with .py), or None."""
    bare = name.removesuffix(".py")
    for recipe in RECIPES:
        if bare == recipe.name or bare in recipe.aliases:
            return recipe
    return None


def recipe_names() -> list[str]:
    """Return all names recipes answer to, the aliases after the names."""
    return [recipe.name for recipe in RECIPES] + [alias for recipe in RECIPES for alias in recipe.aliases]


@lru_cache(maxsize=1)
def list_configs() -> tuple[Config, ...]:
    """Return every config that comes with tune, sorted by folder and name, numbers by their size."""
    root = get_recipes_dir() / "configs"
    named = [(file.relative_to(root).with_suffix("").as_posix(), file) for file in root.rglob("*.yaml")]
    named.sort(key=lambda item: _reading_order(item[0]))
    return tuple(Config(name, file, read_recipe_key(file)) for name, file in named)


def configs_of(recipe: Recipe) -> list[str]:
    """Return the names of the configs that come with tune for `recipe`."""
    return [config.name for config in list_configs() if find_recipe(config.recipe or "") == recipe]


def example_config(recipe: Recipe) -> str | None:
    """Return the config to try `recipe` with: for the bundled tiny model where there is one, else the first."""
    return min(configs_of(recipe), key=lambda name: not name.startswith("tiny/"), default=None)


def _reading_order(name: str) -> tuple[object, ...]:
    # Text and numbers in turn: 135M stands before 1.7B, and 2B before 13B.
    size = re.search(r"/(?:.*_)?(\d+(?:\.\d+)?)([MB])_", name)
    parameters = 0.0 if size is None else float(size[1]) * {"M": 1, "B": 1000}[size[2]]
    return name.count("/"), name.partition("/")[0], parameters, name


def read_recipe_key(file: Path) -> str | None:
    """Return the `recipe:` of a config as it stands in the text, without judging the rest of it."""
    try:
        with file.open("rb") as stream:
            match = _RECIPE_KEY.search(stream.read(_MAX_CONFIG_BYTES))
    except OSError:
        return None
    return match.group(1).decode("utf-8", errors="replace") if match else None


def find_config(name: str, others: Sequence[str] = ()) -> Path:
    """Return the file of the config that `name` means: a path, or the name of one that comes with tune.

    Raises:
        UsageError: there is no such config; one of `others` may be suggested instead.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):  # os.path answers False where Path would raise: odd or overlong names
        return path
    if os.path.isdir(path):
        raise UsageError(f"{name} is a folder; a config is a .yaml file")
    if os.path.exists(path):  # it is read more than once: to check it, and by the recipe
        raise UsageError(f"{name} is a pipe or a device; a config has to be a file")
    configs = {config.name: config.file for config in list_configs()}
    bare = re.sub(r"\.ya?ml$", "", name)
    if bare not in configs:
        for file in (f"{path}.yaml", f"{path}.yml"):
            if os.path.isfile(file):
                return Path(file)
        variants = [known for known in configs if _plain_name(known) == _plain_name(bare)]
        if not variants:
            raise UsageError(_no_such_config(name, [*configs, *others]))
        bare = min(variants, key=len)
        _tell_once(name, bare)
    here = Path.cwd()  # a shorter spelling where it lies below: messages name it
    return configs[bare].relative_to(here) if configs[bare].is_relative_to(here) else configs[bare]


def _plain_name(name: str) -> str:
    """Return a config's name without what torchtune has several of where there is one here."""
    is_evaluation = _EVALUATION.fullmatch(name) and (get_recipes_dir() / "configs" / name).parent.is_dir()
    return "eleuther_evaluation" if is_evaluation else _VARIANT.sub("", name)


@lru_cache  # one command looks a name up more than once
def _tell_once(name: str, plain: str) -> None:
    """Say which config stands for one that torchtune has several of."""
    message = f"{name} is read as {plain}: one config serves one device and many"
    if _EVALUATION.fullmatch(re.sub(r"\.ya?ml$", "", name)):
        message = f"{name} is read as {plain}: one config serves all models, model_checkpoint=DIR says which"
    if name.endswith("_low_memory"):
        message += ". It takes more memory than torchtune's; `tune cat llama2/7B_full_low_memory` shows what saves some"
    report_warning(message)


def find_source(name: str) -> tuple[Path, Recipe | None]:
    """Return the file of the recipe or config that `name` means, and the recipe if it is one.

    Raises:
        UsageError: there is neither.
    """
    recipe = find_recipe(name)
    return (find_config(name, recipe_names()), None) if recipe is None else (recipe.file, recipe)


def _no_such_config(name: str, known: list[str]) -> str:
    if "\0" in name or not name.strip():
        return f"{name!r} is no config; `tune ls` lists them"
    bare = re.sub(r"\.ya?ml$", "", name)
    close = [nearest(bare, known)]
    if "/" not in bare or None in close:
        # Many families have a 7B_full: who leaves the folder out is shown them all.
        last = nearest(os.path.basename(bare), [os.path.basename(each) for each in known])
        close = [each for each in known if os.path.basename(each) == last] or close
    shown = ", ".join(filter(None, close[:4])) + (f" or {len(close) - 4} more" if len(close) > 4 else "")
    hint = f"; did you mean {shown}?" if shown else ""
    return f"there is no config {name}: neither a file nor one of `tune ls`{hint}"
