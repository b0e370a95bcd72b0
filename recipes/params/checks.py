"""What settings must be to each other, as far as a configuration alone can tell: checks that several recipes share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from tune.config.component import Component
from tune.config.diagnostics import Diagnostic, problem
from tune.config.signatures import Signature, read_signature
from tune.recipes.params.limits import IGNORE_INDEX
from tune.utils.exclusions import Choices, find_exclusions

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


def check_loss(loss: Component) -> Iterator[Diagnostic]:
    """Yield what makes a loss another than the sum over the target tokens."""
    reduction = loss.kwargs.get("reduction", "sum")
    if reduction != "sum":
        yield problem(
            f"must be sum, not {reduction}: the recipe divides by the count of all target tokens of a step itself",
            ("loss.reduction",),
            suggestion="sum",
        )
    ignored = loss.kwargs.get("ignore_index", IGNORE_INDEX)
    if ignored != IGNORE_INDEX and loss.path.startswith(("tune.", "torch.")):
        yield problem(
            f"must be {IGNORE_INDEX}, not {ignored}: that is the label of positions without a target; remove it",
            ("loss.ignore_index",),
            suggestion=str(IGNORE_INDEX),
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
