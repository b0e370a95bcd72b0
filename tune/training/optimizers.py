"""Building the optimizer and its schedule as a config describes them."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from tune.config.component import Component
from tune.config.instantiate import instantiate
from tune.config.slots import OPTIMIZER
from tune.errors import ConfigError, first_line
from tune.training.optimizer_in_backward import OptimizerInBackward
from tune.training.trained_weights import find_exceptions
from tune.utils import get_logger
from tune.utils.exclusions import Choices, find_exclusions, refuse_excluded
from tune.utils.sharding import is_sharded

__all__ = ["build_lr_scheduler", "build_optimizer", "check_step", "restore_paged_state"]

# Optimizers whose fused form exists on CPU and CUDA alike: one kernel in place of a dozen passes over memory.
FUSED_OPTIMIZERS = ("Adam", "AdamW", "SGD")
# Choosing one of these is choosing an implementation, and excludes fused.
IMPLEMENTATION_ARGUMENTS = frozenset({"fused", "foreach", "capturable", "differentiable"})
# More numbers than bitsandbytes keeps in 32 bits (4096), fewer than it pages (100 000).
_SCRATCH_SHAPE = (64, 1024)


def build_optimizer(
    component: Component,
    weights: Iterable[Tensor] | nn.Module,
    in_backward: bool = False,
    world_size: int = 1,
    **exceptions: Any,
) -> Optimizer:
    """Return the optimizer of `weights`, fused where it can be and the config leaves it open.

    Args:
        component: the optimizer's class and arguments.
        weights: what it trains, or the model whose weights it trains.
        in_backward: make one optimizer per weight, stepping inside the backward pass.
        world_size: processes of the run.
        exceptions: of a model, what is said of some weights alone, as `find_exceptions` takes it.

    Raises:
        ConfigError: the optimizer cannot train these weights, or not on their device, or refuses its arguments.
    """
    name = component.path.rpartition(".")[2]
    if reason := OPTIMIZER.unsuitable.get(name):  # a config that names it has not come as far as here
        raise ConfigError(f"optimizer {name} does not fit this recipe: {reason}")
    options: dict[int, dict[str, Any]] = {}
    if isinstance(weights, nn.Module):
        options = find_exceptions(weights, component.kwargs.get("lr"), **exceptions)
        weights = weights.parameters()
    trained = [weight for weight in weights if weight.requires_grad]
    if in_backward:  # the rate that is logged is the first one's
        trained.sort(key=lambda weight: id(weight) in options)
    choices = Choices(
        world_size,
        optimizer=component.path,
        fused=bool(component.kwargs.get("fused")),
        optimizer_in_bwd=in_backward,
        sharded=any(map(is_sharded, trained)),
    )
    refuse_excluded(choices)
    is_open = component.path.startswith(("torch.optim", "tune.modules.optim")) and name in FUSED_OPTIMIZERS
    is_open = is_open and not IMPLEMENTATION_ARGUMENTS & component.kwargs.keys()
    defaults = {"fused": True} if is_open and not any(find_exclusions(replace(choices, fused=True))) else {}

    def make(params: list[Tensor]) -> Optimizer:
        groups = _group(params, options)
        optimizer: Optimizer = instantiate(component, groups if options else params, defaults=defaults)
        if unknown := {key for group in groups for key in group} - {"params"} - optimizer.defaults.keys():
            raise ConfigError(
                f"optimizer {component.path} has no {', '.join(unknown)}, which some weights are to differ in"
            )
        return optimizer

    try:
        optimizer = OptimizerInBackward(trained, make) if in_backward else make(trained)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"optimizer {component.path} cannot be built: {error}") from error
    in_bf16 = any(weight.dtype == torch.bfloat16 and not isinstance(weight, FakeTensor) for weight in trained)
    if in_bf16 and component.path.startswith("torch."):  # not where its sizes are measured
        get_logger().warning(
            f"{component.path} rounds bf16 weights to the nearest: updates below half a unit of their last bit, 0.2% "
            "of a weight, are lost, and averages of squares stand still. optimizer=AdamW learns them in the same "
            "memory; so does param_dtype=fp32 in more."
        )
    if component.path.startswith("bitsandbytes."):
        check_step(component.path, make, trained)
    return optimizer


def _group(weights: list[Tensor], options: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return weights as groups that share their options; those without come first."""
    groups: dict[tuple[tuple[str, Any], ...], list[Tensor]] = {}
    for weight in sorted(weights, key=lambda weight: id(weight) in options):
        groups.setdefault(tuple(sorted(options.get(id(weight), {}).items())), []).append(weight)
    return [{"params": members, **dict(shared)} for shared, members in groups.items()]


def check_step(path: str, make: Callable[[list[Tensor]], Optimizer], weights: Iterable[Tensor]) -> None:
    """Take one step of an optimizer of bitsandbytes on a weight that nobody needs, for each device and dtype.

    Its releases differ in which optimizers work on which device, and tell at the first step only.

    Args:
        path: the optimizer's class.
        make: makes the optimizer of some weights.
        weights: what it is to train; they stay as they are.

    Raises:
        ConfigError: the step failed.
    """
    for device, dtype in dict.fromkeys((weight.device, weight.dtype) for weight in weights):
        scratch = torch.nn.Parameter(torch.ones(_SCRATCH_SHAPE, dtype=dtype, device=device))
        scratch.grad = torch.ones_like(scratch)
        try:
            make([scratch]).step()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # releases fail in every way: attributes, names, assertions
            package = path.partition(".")[0]
            release = getattr(sys.modules.get(package), "__version__", "as installed")
            raise ConfigError(
                f"optimizer {path} cannot train on {device.type}: with {package} {release} a step of "
                f"{dtype} weights fails ({first_line(error)}). Use torch.optim.AdamW"
                + (f", a GPU, or a later {package}." if device.type == "cpu" else f", or a later {package}.")
            ) from error


def restore_paged_state(optimizer: Optimizer) -> None:
    """Put state that bitsandbytes pages between GPU and host back into such memory, after it was read from a file.

    It comes as plain host memory, all of which the optimizer's next step would move to the GPU for good. Other
    optimizers are left alone.
    """
    parts = optimizer.parts if isinstance(optimizer, OptimizerInBackward) else (optimizer,)
    for part in parts:
        if not getattr(part, "is_paged", False):
            continue
        for group_index, group in enumerate(part.param_groups):
            for index, weight in enumerate(group["params"]):
                if saved := part.state.pop(weight, None):
                    part.init_state(group, weight, group_index, index)  # type: ignore[attr-defined]
                    state = part.state[weight]
                    for key, value in saved.items():
                        if getattr(state.get(key), "is_paged", False):
                            state[key].copy_(value)
                        else:
                            state[key] = value


def build_lr_scheduler(
    component: Component | None, optimizer: Optimizer, num_training_steps: int
) -> LRScheduler:
    """Return the schedule of `optimizer`'s learning rate; None leaves the rate as it is.

    One that is still warming up when the run ends is warned of: on little data such a run learns next to nothing.

    Args:
        component: the schedule's function or class and arguments.
        optimizer: what it sets the rate of.
        num_training_steps: optimizer steps of the whole run, passed on to a schedule that asks for it.

    Raises:
        ConfigError: the schedule cannot be stepped after each optimizer step.
    """
    if not component:
        return ConstantLR(optimizer, factor=1.0, total_iters=0)
    try:
        scheduler = instantiate(component, optimizer, defaults={"num_training_steps": num_training_steps})
    except (ValueError, ArithmeticError) as error:  # torch divides by some arguments' differences
        raise ConfigError(f"lr_scheduler {component.path} cannot be built: {error}") from error
    if isinstance(scheduler, OneCycleLR) and scheduler.total_steps < num_training_steps:
        raise ConfigError(
            f"lr_scheduler OneCycleLR ends after {scheduler.total_steps} steps, but the run has {num_training_steps}. "
            f"Set lr_scheduler.total_steps={num_training_steps}."
        )
    if isinstance(scheduler, ReduceLROnPlateau) or not isinstance(scheduler, LRScheduler):
        raise ConfigError(
            f"lr_scheduler {component.path} is not a schedule over optimizer steps"
            + (": it waits for a validation loss." if isinstance(scheduler, ReduceLROnPlateau) else ".")
            + " Use cosine, linear, constant or another class of torch.optim.lr_scheduler."
        )
    num_warmup_steps = component.kwargs.get("num_warmup_steps")
    if isinstance(ratio := component.kwargs.get("warmup_ratio"), int | float):
        num_warmup_steps = math.ceil(ratio * num_training_steps)
    if isinstance(num_warmup_steps, int) and num_warmup_steps >= max(num_training_steps, 1):
        reached = (num_training_steps - 1) / num_warmup_steps
        get_logger().warning(
            f"The learning rate does not reach its peak: lr_scheduler warms up for {num_warmup_steps} steps, and the "
            f"last one of this run, number {num_training_steps}, is taken with {reached:.0%} of it. Set "
            f"lr_scheduler.num_warmup_steps={num_training_steps // 10}, say, or more epochs."
        )
    return scheduler
