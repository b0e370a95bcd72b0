"""Small functions of torchtune's `training`, under its names and with its arguments, over what does the work here."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tune import utils
from tune.data import padded_collate_sft
from tune.errors import TrainingError
from tune.modules.document_mask import dense_mask, find_document_starts
from tune.training.activations import checkpoint_activations
from tune.training.compilation import compile_blocks
from tune.training.offloading import activation_offloading
from tune.utils.seed import MAX_SEED
from tune.utils.torchtune_functions import get_world_size_and_rank

_WIDE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@contextmanager
def set_default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make new floating-point tensors of this type for as long as the body runs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def get_dtype(dtype: str | torch.dtype | None = None, device: torch.device | None = None) -> torch.dtype:
    """Return the type called "bf16", "fp16", "fp32" or "fp64"; None is fp32, and a type of torch stays what it is.

    Raises:
        TrainingError: there is no such type to train in, or `device` is a GPU too old for bf16.
    """
    if dtype is None or dtype == "fp64":
        return torch.float32 if dtype is None else torch.float64
    if isinstance(dtype, torch.dtype):
        if dtype not in _WIDE:
            raise TrainingError(f"{dtype} is no type to train in; use one of {', '.join(map(str, _WIDE))}.")
        return dtype
    return utils.get_dtype(dtype, device)


def set_seed(seed: int | None = None, debug_mode: str | int | None = None) -> int:
    """Seed Python, numpy and torch with the seed plus this process's number; return the seed without it.

    Args:
        seed: None draws one, the same for all processes that have joined.
        debug_mode: for `torch.set_deterministic_debug_mode`; None leaves what is set.

    Raises:
        ValueError: the seed is below 0 or too large.
    """
    world_size, rank = get_world_size_and_rank()
    if seed is None:
        drawn = [int(torch.randint(0, MAX_SEED - world_size + 1, (1,)))]
        if world_size > 1:
            dist.broadcast_object_list(drawn, src=0)
        seed = drawn[0]
    if not 0 <= seed <= MAX_SEED - world_size + 1:
        raise ValueError(f"the seed is {seed}; it must be from 0 to {MAX_SEED - world_size + 1}")
    utils.set_seed(seed + rank)
    if debug_mode is not None:
        torch.set_deterministic_debug_mode(debug_mode)
        is_strict = torch.get_deterministic_debug_mode() != 0
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = is_strict, not is_strict
        if is_strict:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    return seed


def is_distributed() -> bool:
    """Return whether a launcher has said which process this is, and where the others are."""
    named = all(os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"))
    return named and dist.is_available()


def init_distributed(**kwargs: Any) -> bool:
    """Join the other processes, if a launcher has started any, and return whether one has.

    Args:
        **kwargs: for `torch.distributed.init_process_group`.

    Raises:
        RuntimeError: they have been joined already.
    """
    if not is_distributed():
        return False
    if dist.is_initialized():
        raise RuntimeError("the processes have joined already")
    dist.init_process_group(**kwargs)
    return True


def cleanup_before_training() -> None:
    """Free what nobody holds any more, and count peak memory from here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def compile_model(model: nn.Module, verbose: bool = True) -> None:
    """Compile each block of a model in place, as `compile_blocks` does."""
    from tune.modules.torchtune_layers import TransformerSelfAttentionLayer

    blocks = [module for module in model.modules() if isinstance(module, TransformerSelfAttentionLayer)]
    if verbose:
        utils.get_logger().info("compiling %d blocks", len(blocks))
    compile_blocks(blocks)


def compile_loss(loss: nn.Module, verbose: bool = True) -> nn.Module:
    """Return the loss, compiled in place."""
    if verbose:
        utils.get_logger().info("compiling the loss")
    loss.compile()
    return loss


def set_activation_checkpointing(
    model: nn.Module, auto_wrap_policy: Collection[type[nn.Module]] | Callable[..., bool]
) -> None:
    """Make modules of a model run again in the backward pass instead of keeping what they computed.

    Names of parameters stay as they are: `checkpoint_activations` changes the modules in place.

    Args:
        model: changed in place.
        auto_wrap_policy: types of the modules, or a function that is called for each module, as FSDP's policies are,
            with `module`, `recurse=False` and `nonwrapped_numel`, and chooses it by returning True.
    """
    if isinstance(auto_wrap_policy, Collection):
        types = tuple(auto_wrap_policy)
        chosen = [module for module in model.modules() if isinstance(module, types)]
    else:
        chosen = [
            module
            for module in model.modules()
            if auto_wrap_policy(
                module=module, recurse=False, nonwrapped_numel=sum(p.numel() for p in module.parameters())
            )
        ]
    checkpoint_activations(chosen)


def get_act_offloading_ctx_manager(
    model: nn.Module, enable_activation_offloading: bool
) -> AbstractContextManager[object]:
    """Return the context in which activations wait in host memory; it changes nothing where not enabled."""
    return activation_offloading(model, next(model.parameters()).device, enable_activation_offloading)


@torch.no_grad()
def scale_grads(model: nn.Module, scaler: Tensor) -> None:
    """Multiply every gradient of a model in place."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad *= scaler


def padded_collate_packed(batch: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Return a batch of packed examples as torchtune gives it: with a `mask` [b, s, s] beside the positions."""
    collated = padded_collate_sft(batch)
    collated["mask"] = dense_mask(find_document_starts(collated["input_pos"]))
    return collated
