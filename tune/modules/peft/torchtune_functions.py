"""torchtune's `modules.peft`, under its names and with its arguments."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from tune.errors import ConfigError
from tune.modules.peft.lora import LoRALinear


@runtime_checkable
class AdapterModule(Protocol):
    """A module that says which of its parameters are an adapter's; `get_adapter_params` finds them."""

    def adapter_params(self) -> list[str]:
        """Return the names of those parameters, as the module itself has them."""
        ...


class _AnyDoRA(type):
    def __instancecheck__(cls, instance: object) -> bool:
        # A builder's modules are of the one class for both.
        is_dora = cls is DoRALinear and isinstance(instance, LoRALinear) and instance.use_dora
        return is_dora or super().__instancecheck__(instance)


class DoRALinear(LoRALinear, metaclass=_AnyDoRA):
    """`LoRALinear` with `use_dora`; a bias is added as it is, and not stretched with the rows."""

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        use_bias: bool = False,
        quantize_base: bool = False,
    ) -> None:
        super().__init__(in_dim, out_dim, rank, alpha, dropout, use_bias, quantize_base, use_dora=True)


def get_adapter_params(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a model's adapters by name, those of one's own `AdapterModule`s among them."""
    adapters = {path: module for path, module in model.named_modules() if isinstance(module, AdapterModule)}
    return {
        f"{path}.{name}" if path else name: model.get_submodule(path).get_parameter(name)
        for path, adapter in adapters.items()
        for name in adapter.adapter_params()
    }


def set_trainable_params(model: nn.Module, adapter_params: Collection[str]) -> None:
    """Train the parameters that are named, and freeze all others."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapter_params)


def get_adapter_state_dict(
    state_dict: dict[str, Any], device: str | torch.device | None = "cpu"
) -> dict[str, Any]:
    """Return the entries of a state dict that are an adapter's, on a device."""
    return {
        name: value.to(device) for name, value in state_dict.items() if "lora" in name or "magnitude" in name
    }


@torch.no_grad()
def get_merged_lora_ckpt(state_dict: dict[str, Any], rank: int, alpha: float) -> dict[str, Any]:
    """Put the adapters of a state dict into their matrices, in place, and return it.

    Args:
        state_dict: of a model with adapters; without them when this returns.
        rank: of all of them.
        alpha: of all of them; what an adapter adds is multiplied by alpha / rank.

    Raises:
        ConfigError: a matrix is not there, or in 4 bits.
    """
    for key in [name for name in state_dict if name.endswith("lora_a.weight")]:
        module = key.removesuffix("lora_a.weight")
        if f"{module}weight" not in state_dict:
            raise ConfigError(
                f"{module}weight is not in the state dict (in 4 bits, perhaps): "
                "tune.modules.peft.merge_adapters(model) merges in the model, whatever it is kept in"
            )
        a, b = state_dict.pop(key), state_dict.pop(f"{module}lora_b.weight")
        magnitude = state_dict.pop(f"{module}magnitude", None)
        if magnitude is None:
            state_dict[f"{module}weight"] += (alpha / rank) * b @ a
        else:
            merged = state_dict[f"{module}weight"].to(a.dtype) + (alpha / rank) * b @ a
            stretch = magnitude / torch.linalg.vector_norm(merged, dim=1)
            state_dict[f"{module}weight"] = merged * stretch[:, None]
    return state_dict


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[None]:
    """Let the frozen model do alone for as long as the body runs: the reference of a preference loss, for example."""
    modules: list[Any] = [module for module in model.modules() if isinstance(module, AdapterModule)]
    switched = [module for module in modules if getattr(module, "disabled", None) is False]
    for module in switched:
        module.disabled = True
    try:
        yield
    finally:
        for module in switched:
            module.disabled = False
