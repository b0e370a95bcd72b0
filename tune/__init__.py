"""Fine-tuning of large language models in native PyTorch: typed configs, readable recipes.

    import tune
    result = tune.run("full_finetune", {"max_steps": 100, "output_dir": "out/mine"}, config="tiny/full_finetune")
    result.loss, result.model, result.report

Parts that work alone (each is imported when it is first used):

    tune.models         models by name, and `from_checkpoint(folder)`
    tune.tokenizers     tokenizers, and `from_checkpoint(folder)`
    tune.datasets       data sets from files and the hub, as tokens and labels
    tune.data           rows, packing and batches
    tune.modules        layers, losses (`tune.modules.loss`), adapters (`tune.modules.peft`), optimizers
    tune.training       what surrounds a training loop: steps that are saved, memory, metrics
    tune.generation     answers of a model
    tune.checkpoints    reading and writing weights
    tune.config         typed parameters, `parse` for a recipe of your own, `instantiate`
    tune.recipes        the recipes: files to read and copy

On the command line: `tune --help`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PARTS = (
    "models",
    "tokenizers",
    "datasets",
    "data",
    "modules",
    "training",
    "generation",
    "checkpoints",
    "config",
) + ("recipes", "report", "hub", "utils", "errors", "cli")


def __getattr__(name: str) -> Any:
    if name == "run":
        return import_module("tune.cli.from_python").run
    if name in _PARTS:
        return import_module(f"tune.{name}")
    raise AttributeError(f"module 'tune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PARTS, "run"})
