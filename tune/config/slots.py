"""The slots of a configuration: where a short name is looked up, what fits, what the recipe adds.

A slot is a declaration, not a registry: a new model or dataset is found as soon as the package named in
`namespaces` exports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# How much of a dataset there is in a list of them.
WEIGHT = "weight"
# Whether a dataset is read as it is needed, and how many of its rows are then shuffled together.
STREAMING = "streaming"
SHUFFLE_BUFFER = "shuffle_buffer"


@dataclass(frozen=True)
class Slot:
    """One place in a configuration that holds a component.

    Args:
        kind: what the component is, in a user's words: "optimizer", "dataset".
        namespaces: where short names are looked up, in order; ``tune.models.*`` means every module in it.
        patterns: how a short name may be spelt out. ``{}`` is compared exactly, the others without regard to
            case and underscores: ``{}_dataset`` finds ``alpaca_dataset`` for ``alpaca``.
        accepts: base class that a class must have, or that a function must be annotated to return;
            "" where the kind has no common base.
        names: what the last part of a path inside `tune` or `torch` must look like (any of them); ``*`` at the
            start or the end stands for anything.
            They keep a stranger's config from calling some function that merely lives in the right package.
        supplies: arguments the recipe passes itself; setting one in a config is an error, leaving it out is not.
        defaults: arguments the recipe passes if the callable takes them and the config does not set them.
        of_recipe: arguments that a component of ours may have for the recipe, with their help: they are not passed on.
        of_entries: likewise, for one of a list of components.
        unsuitable: names that are of the kind and yet do not fit, each with the reason.
    """

    kind: str
    namespaces: tuple[str, ...]
    patterns: tuple[str, ...] = ("{}",)
    accepts: str = ""
    names: tuple[str, ...] = ("*",)
    supplies: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()
    of_recipe: Mapping[str, str] = field(default_factory=dict, hash=False)
    of_entries: tuple[str, ...] = ()
    unsuitable: Mapping[str, str] = field(default_factory=dict, hash=False)


MODEL = Slot(
    kind="model",
    namespaces=("tune.models", "tune.models.*"),
    accepts="torch.nn.Module",
    defaults=("checkpoint_dir",),
)
TOKENIZER = Slot(
    kind="tokenizer",
    namespaces=("tune.tokenizers", "tune.models.*"),
    patterns=("{}", "{}_tokenizer"),
    names=("*tokenizer", "*Tokenizer", "auto"),
    defaults=("checkpoint_dir",),
)
DATASET = Slot(
    kind="dataset",
    namespaces=("tune.datasets",),
    patterns=("{}", "{}_dataset"),
    names=("*_dataset",),
    supplies=("tokenizer",),
    of_recipe={
        STREAMING: "Read rows as training comes to them, without an end; needs max_steps. [default: false]",
        SHUFFLE_BUFFER: "Rows of a stream that are shuffled together. [default: 10000]",
    },
    of_entries=(WEIGHT,),
)
OPTIMIZER = Slot(
    kind="optimizer",
    namespaces=("tune.modules.optim", "torch.optim", "bitsandbytes.optim"),
    accepts="torch.optim.Optimizer",
    supplies=("params",),
    unsuitable={
        "LBFGS": "it runs the whole batch several times per step; use AdamW",
        "SparseAdam": "it takes sparse gradients only; use AdamW",
    },
)
LOSS = Slot(
    kind="loss",
    namespaces=("tune.modules.loss", "torch.nn"),
    accepts="torch.nn.Module",
    # It is called with logits and token ids: most losses of torch.nn would fail, NLLLoss would train on nonsense.
    names=("*CrossEntropyLoss", "CEWith*"),
    defaults=("ignore_index", "reduction"),
)
PREFERENCE_LOSS = Slot(
    kind="preference loss",
    namespaces=("tune.modules.loss.preference",),
    patterns=("{}", "{}Loss"),
    accepts="tune.modules.loss.preference.PreferenceLoss",
    names=("*Loss",),
    unsuitable={"PairwiseLoss": "it is what losses of pairs have in common; name one of them, such as dpo"},
)
REWARD_LOSS = Slot(
    kind="reward loss",
    namespaces=("tune.modules.loss.reward",),
    patterns=("{}", "{}Loss"),
    accepts="tune.modules.loss.reward.RewardLoss",
    names=("*Loss",),
    unsuitable={
        "RewardLoss": "it is what such losses have in common; name one of them, such as bradley_terry"
    },
)
KD_LOSS = Slot(
    kind="distillation loss",
    namespaces=("tune.modules.loss",),
    patterns=("{}", "{}_loss"),
    accepts="tune.modules.loss.distillation.DistillationLoss",
    defaults=("ignore_index",),
)
LR_SCHEDULER = Slot(
    kind="lr_scheduler",
    namespaces=("tune.training.lr_schedulers", "torch.optim.lr_scheduler"),
    patterns=("{}", "get_{}_schedule_with_warmup", "get_{}_schedule"),
    accepts="torch.optim.lr_scheduler.LRScheduler",
    supplies=("optimizer",),
    defaults=("num_training_steps", "last_epoch"),
    unsuitable={
        "ReduceLROnPlateau": "it waits for a validation loss; use cosine, linear or constant",
        "LambdaLR": "it takes a function, which a configuration cannot hold",
        "MultiplicativeLR": "it takes a function, which a configuration cannot hold",
        "ChainedScheduler": "it takes schedules that are built already",
        "SequentialLR": "it takes schedules that are built already",
    },
)
CHECKPOINTER = Slot(
    kind="checkpointer",
    namespaces=("tune.training",),
    names=("*Checkpointer",),
    defaults=("output_dir",),
)
METRIC_LOGGER = Slot(
    kind="metric_logger",
    namespaces=("tune.training.metric_logging",),
    patterns=("{}", "{}Logger"),
    names=("*Logger",),
    defaults=("log_dir", "resume"),
)
PROFILER = Slot(
    kind="profiler",
    namespaces=("tune.training",),
    names=("*_profiler", "*Profiler"),
    defaults=("output_dir",),
)
COLLATE_FN = Slot(
    kind="collate_fn",
    namespaces=("tune.data",),
    names=("*collate*",),
    supplies=("batch",),
    defaults=("padding_idx", "ignore_idx"),
    unsuitable={"padded_collate": "it pads one field alone, and a batch has tokens, labels and positions"},
)
METRIC = Slot(
    kind="metric",
    namespaces=("tune.evaluation.metrics",),
    supplies=("answer", "reference"),
)

SLOTS = tuple(each for each in list(vars().values()) if isinstance(each, Slot))  # all of the above
