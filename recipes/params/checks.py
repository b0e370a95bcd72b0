"""What settings must be to each other, as far as a configuration alone can tell: checks that several recipes share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem, shorten
from tune.config.signatures import Signature, read_signature
from tune.config.slots import SHUFFLE_BUFFER, STREAMING, WEIGHT
from tune.config.suggestions import nearest
from tune.errors import ConfigError
from tune.utils.exclusions import Choices, find_exclusions
from tune.utils.splits import parse_split

# The label of a position without a target, in every batch (`tune.data`, which would import torch).
_IGNORE_INDEX = -100
_TEMPLATE_FILES = (".jinja", ".jinja2", ".j2")
PREFERENCES = (
    "preference_dataset",
    "unpaired_dataset",
    "hh_rlhf_helpful_dataset",
    "stack_exchange_paired_dataset",
)
# Whose arguments mean what is written here; in a component of one's own a name may mean anything.
_OPTIMIZERS = ("tune.", "torch.", "bitsandbytes.")


def check_optimizer(optimizer: Component) -> Iterator[Diagnostic]:
    """Yield what an optimizer's arguments have against each other, or against training at all."""
    yield from _check_learning_rate(optimizer)
    given = optimizer.kwargs if optimizer.path.startswith(_OPTIMIZERS) else {}
    if given.get("fused") and given.get("foreach"):
        yield problem("excludes foreach: choose one implementation", ("optimizer.fused", "optimizer.foreach"))
    for name, why in (
        ("maximize", "would make the loss greater at each step"),
        ("capturable", "is for steps recorded as a CUDA graph, which no recipe does"),
        ("differentiable", "is for gradients of the step itself, which no recipe takes"),
    ):
        if given.get(name):
            yield problem(f"{why}; remove it", (f"optimizer.{name}",))
    if given.get("nesterov") and optimizer.path == "torch.optim.SGD":
        if not given.get("momentum"):
            yield problem("needs optimizer.momentum above 0", ("optimizer.nesterov", "optimizer.momentum"))
        elif given.get("dampening"):
            yield problem("needs a dampening of 0", ("optimizer.nesterov", "optimizer.dampening"))


def _check_learning_rate(optimizer: Component) -> Iterator[Diagnostic]:
    # The default of an optimizer's signature is no rate for fine-tuning: AdamW's 1e-3 ruins a pre-trained model.
    if optimizer.kwargs.get("lr") is not None or not optimizer.path:
        return
    signature = read_signature(optimizer.path)
    # of a package that is not installed here nothing can be read
    takes_one = (
        "lr" in signature.parameters
        if isinstance(signature, Signature)
        else optimizer.path.startswith(_OPTIMIZERS)
    )
    if takes_one:
        yield problem(
            "is required: no learning rate suits every model. Write it as lr, for example lr: 2e-5",
            ("optimizer.lr", "optimizer"),
            code="missing-required",
        )


def check_lr_scheduler(schedule: Component | None) -> Iterator[Diagnostic]:
    """Yield what a schedule of a run cannot be told."""
    given = schedule.kwargs if schedule is not None else {}
    if given.get("last_epoch", -1) != -1:
        yield problem(
            "must be -1: where a schedule goes on is part of a saved step; remove it",
            ("lr_scheduler.last_epoch",),
            suggestion="-1",
        )
    if given.get("warmup_ratio") is not None and given.get("num_warmup_steps") is not None:
        yield problem(
            "and num_warmup_steps both say how long the warmup is; keep one",
            ("lr_scheduler.warmup_ratio", "lr_scheduler.num_warmup_steps"),
        )
    if schedule is not None and schedule.path == "torch.optim.lr_scheduler.OneCycleLR":
        yield from _check_one_cycle(given)


def _check_one_cycle(given: Mapping[str, Any]) -> Iterator[Diagnostic]:
    num_steps = given.get("total_steps") or (given.get("epochs") or 0) * (given.get("steps_per_epoch") or 0)
    share = given.get("pct_start", 0.3)  # torch's
    if not num_steps:
        yield problem("is required: the optimizer steps of the whole run", ("lr_scheduler.total_steps",))
    elif share * num_steps == 1:  # torch rises over one step less, and divides by that
        yield problem(
            f"is {share:g}, one step of {num_steps}, over which nothing can rise: choose a greater one",
            ("lr_scheduler.pct_start", "lr_scheduler.total_steps"),
        )


def check_checkpointer(checkpointer: Component) -> Iterator[Diagnostic]:
    """Yield what no checkpointer of ours can be told."""
    if not checkpointer.path.startswith("tune."):
        return
    if checkpointer.kwargs.get("safe_serialization") is False:
        yield problem(
            "must be true: weights are only written as safetensors, since pickled files can run code when loaded",
            ("checkpointer.safe_serialization",),
            suggestion="true",
        )
    if checkpointer.kwargs.get("adapter_checkpoint") == "":
        yield problem(
            "is empty: give the adapter's folder, or remove it", ("checkpointer.adapter_checkpoint",)
        )


def check_collation(collate_fn: Component) -> Iterator[Diagnostic]:
    """Yield a label of padding that would be learnt."""
    label = collate_fn.kwargs.get("ignore_idx", _IGNORE_INDEX)
    if label != _IGNORE_INDEX and collate_fn.path.startswith("tune."):
        yield problem(
            f"must be {_IGNORE_INDEX}, not {label}: padding would be learnt; remove it",
            ("collate_fn.ignore_idx",),
            suggestion=str(_IGNORE_INDEX),
        )


def check_loss(loss: Component) -> Iterator[Diagnostic]:
    """Yield what makes a loss another than the sum over the target tokens."""
    reduction = loss.kwargs.get("reduction", "sum")
    if reduction != "sum":
        yield problem(
            f"must be sum, not {reduction}: the recipe divides by the count of all target tokens of a step itself",
            ("loss.reduction",),
            suggestion="sum",
        )
    ignored = loss.kwargs.get("ignore_index", _IGNORE_INDEX)
    if ignored != _IGNORE_INDEX and loss.path.startswith(("tune.", "torch.")):
        yield problem(
            f"must be {_IGNORE_INDEX}, not {ignored}: that is the label of positions without a target; remove it",
            ("loss.ignore_index",),
            suggestion=str(_IGNORE_INDEX),
        )


def check_sizes(model: Component) -> Iterator[Diagnostic]:
    """Yield the sizes of a decoder that do not go into each other."""
    if not model.path.startswith("tune."):
        return  # a name may mean anything there
    sizes = {name: value for name, value in model.kwargs.items() if type(value) is int and value > 0}
    heads, kv_heads = sizes.get("num_heads"), sizes.get("num_kv_heads")
    width, head_dim = sizes.get("embed_dim"), sizes.get("head_dim")
    if heads and width and head_dim is None:
        head_dim = default_of(model.path, "head_dim")  # qwen3 has one
    if heads and kv_heads and heads % kv_heads:
        yield problem(
            f"is {heads}, not a multiple of num_kv_heads {kv_heads}",
            ("model.num_heads", "model.num_kv_heads"),
        )
    states, state_keys = (
        sizes.get(name) if name in model.kwargs else default_of(model.path, name)
        for name in ("num_state_heads", "num_state_key_heads")
    )
    if states and state_keys and states % state_keys:
        yield problem(
            f"is {states}, not a multiple of num_state_key_heads {state_keys}",
            ("model.num_state_heads", "model.num_state_key_heads"),
        )
    if heads and width and head_dim is None and width % heads:
        yield problem(
            f"is {width}, not a multiple of num_heads {heads}", ("model.embed_dim", "model.num_heads")
        )
    elif heads and width and (head_dim or width // heads) % 2 and model.kwargs.get("rotary_dim") is None:
        found = ("model.head_dim",) if head_dim else ("model.embed_dim", "model.num_heads")
        yield problem(
            f"makes heads of {head_dim or width // heads} channels; rotary positions need an even number",
            found,
        )


def default_of(path: str, argument: str) -> Any:
    """Return the default of a component's argument; None where it has no such argument."""
    signature = read_signature(path)
    parameter = signature.parameters.get(argument) if isinstance(signature, Signature) else None
    return None if parameter is None else parameter.default


def check_datasets(
    name: str, components: Component | tuple[Component, ...] | list[Component] | None
) -> Iterator[Diagnostic]:
    """Yield the prompt templates and splits among the arguments of our datasets that there cannot be.

    Args:
        name: the field that holds the dataset, or a list of them.
        components: its value.
    """
    if isinstance(components, Component) and components.path.startswith("tune."):
        yield from check_template(f"{name}.prompt_template", components.kwargs.get("prompt_template"))
        yield from _check_source(name, components)
    for index, component in enumerate(components if isinstance(components, (list, tuple)) else ()):
        yield from check_datasets(f"{name}.{index}", component)


def check_mixing(datasets: Component | Sequence[Component], mix_until: str) -> Iterator[Diagnostic]:
    """Yield why datasets cannot be mixed by their weights, or a setting of the mixture has no effect."""
    several = datasets if isinstance(datasets, (list, tuple)) else ()
    bare = [f"dataset.{index}" for index, component in enumerate(several) if WEIGHT not in component.kwargs]
    if 0 < len(bare) < len(several):
        yield problem(
            f"has no {WEIGHT}, and others of the list have one: give one to each of them, or to none",
            (bare[0],),
        )
    if mix_until != "first_exhausted" and (not several or len(bare) == len(several)):
        yield problem(
            f"has no effect: it is for a list of datasets, each with a {WEIGHT}", ("mix_until", "dataset")
        )


def each_dataset(**fields: Component | Sequence[Component] | None) -> Iterator[tuple[str, Component]]:
    """Yield each dataset of some fields, with the place where it stands: a field, or a number in its list."""
    for name, given in fields.items():
        if isinstance(given, Component):
            yield name, given
        for index, one in enumerate(() if given is None or isinstance(given, Component) else given):
            yield f"{name}.{index}", one


def check_answers(**fields: Component | Sequence[Component] | None) -> Iterator[Diagnostic]:
    """Yield which datasets of ours hold preferences, from which no answers are to be learnt."""
    for where, one in each_dataset(**fields):
        builder = one.path.rpartition(".")[2]
        if one.path.startswith("tune.datasets.") and builder in PREFERENCES:
            yield problem(
                f"is {builder}, which gives bad answers beside good ones: use the recipe preference_finetune",
                (where,),
            )


def check_streaming(
    datasets: Component | Sequence[Component],
    dataset_val: Component | None,
    max_steps: int | None,
    val_split: float | None,
) -> Iterator[Diagnostic]:
    """Yield what data that is streamed lacks, or cannot be."""
    several = (
        {"dataset": datasets}
        if isinstance(datasets, Component)
        else {f"dataset.{index}": one for index, one in enumerate(datasets)}
    )
    streamed = [name for name, one in several.items() if one.kwargs.get(STREAMING) is True]
    if streamed and len(streamed) < len(several):
        lacking = next(name for name in several if name not in streamed)
        yield problem(
            "must be streamed, as others of the list are, or none of them", (f"{lacking}.{STREAMING}",)
        )
    elif len(streamed) > 1:
        for name, one in several.items():
            if WEIGHT not in one.kwargs:
                yield problem(
                    "is needed: a stream has no end after which the next could begin", (f"{name}.{WEIGHT}",)
                )
    if streamed and max_steps is None:
        yield problem(
            "is required: streamed data has no known end", ("max_steps", f"{streamed[0]}.{STREAMING}")
        )
    if streamed and val_split is not None:
        yield problem(
            "needs all rows, and streamed data is never read whole: name other data in dataset_val",
            ("val_split", f"{streamed[0]}.{STREAMING}"),
        )
    if dataset_val is not None and dataset_val.kwargs.get(STREAMING) is True:
        yield problem(
            "must be false: validation reads its data to the end; dataset_val.limit takes a part of it",
            (f"dataset_val.{STREAMING}",),
        )
    for name, one in {**several, **({"dataset_val": dataset_val} if dataset_val else {})}.items():
        if SHUFFLE_BUFFER in one.kwargs and one.kwargs.get(STREAMING) is not True:
            yield problem(
                f"has no effect: it is for data that is streamed ({name}.{STREAMING}=true)",
                (f"{name}.{SHUFFLE_BUFFER}",),
            )


def check_val_split(val_split: float | None, dataset_val: Component | None) -> Iterator[Diagnostic]:
    """Yield why no part of the training data can be set aside for validation."""
    if val_split is None:
        return
    if dataset_val is not None:
        yield problem(
            "sets a part of dataset aside for validation, and dataset_val names other data: keep one of the two",
            ("val_split", "dataset_val"),
        )
    if val_split >= 1 and val_split != int(val_split):
        yield problem(
            f"must be a share below 1, or a whole number of examples, not {val_split:g}", ("val_split",)
        )


def _check_source(name: str, dataset: Component) -> Iterator[Diagnostic]:
    split, source = dataset.kwargs.get("split"), dataset.kwargs.get("source")
    if isinstance(split, str):
        try:
            parse_split(split)
        except ConfigError:
            yield problem(
                f"is {split!r}; write a name, or a name with a range: train, train[:500], train[90%:]",
                (f"{name}.split",),
            )
    if source == "":
        yield problem("is empty: give a local file, a folder, or a name on the hub", (f"{name}.source",))


def check_template(name: str, template: Any) -> Iterator[Diagnostic]:
    """Yield why `template` is none; whether a file is there is not a matter of the configuration."""
    is_file = isinstance(template, str) and template.endswith(_TEMPLATE_FILES)
    if is_file or not isinstance(template, (str, Mapping)):
        return
    # the names live there, and it imports no torch; most configurations name none
    from tune.tokenizers.templates import get_prompt_template, template_names

    try:
        get_prompt_template(template)
    except ConfigError as error:
        yield problem(
            f"is no template: {shorten(str(error), 400)}",
            (name,),
            suggestion=nearest(template, template_names()) if isinstance(template, str) else None,
        )


def check_processes(
    choices: Choices, optimizer: Component, quantized: str = "", custom_sharded_layers: Sequence[str] = ()
) -> Iterator[Diagnostic]:
    """Yield what no number of processes can do together.

    Args:
        choices: how the processes are split, and what they have to carry out.
        optimizer: its class and arguments.
        quantized: the field that asks for weights in 4 bits, if one does.
        custom_sharded_layers: names of layers that are sharded on their own.
    """
    choices = replace(
        choices, optimizer=optimizer.path, fused=bool(optimizer.kwargs.get("fused")), quantized=quantized
    )
    for message, fields in find_exclusions(choices):
        yield problem(message, fields)
    if choices.shard_dim == 0:
        yield problem("must be -1 (all that are left) or at least 1", ("data_parallel_shard_dim",))
    if "" in custom_sharded_layers:
        yield problem("names a layer by an empty text", ("custom_sharded_layers",))
