"""A model without memory, as a config describes it; and what of it is trained: every weight, or adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tune.checkpoints import add_adapters, load_adapter
from tune.config.component import Component
from tune.config.instantiate import instantiate
from tune.modules import TransformerDecoder
from tune.modules.peft import adapter_parameters, reset_adapters
from tune.modules.score import add_score
from tune.training.distributed.frozen_base import shard_dim_of_base
from tune.utils.mesh import Mesh

__all__ = ["begin_adapters", "build_on_meta", "build_reward_model", "choose_trained"]


def build_on_meta(component: Component, model_dir: Path, dtype: torch.dtype) -> TransformerDecoder:
    """Return a model on the meta device, to be adapted, frozen or cut, and then loaded.

    Args:
        component: its builder and arguments.
        model_dir: of its weights, for a builder that looks there.
        dtype: of its weights.
    """
    with torch.device("meta"):
        model: TransformerDecoder = instantiate(component, defaults={"checkpoint_dir": str(model_dir)})
    return model.to(dtype)


def build_reward_model(component: Component, model_dir: Path, dtype: torch.dtype) -> TransformerDecoder:
    """Return a model that scores texts, on the meta device; arguments as for `build_on_meta`.

    It is a reward model already, or a language model whose output matrix gives way to a score that begins anew.

    Raises:
        ConfigError: as `add_score`.
    """
    with torch.device("meta"):
        defaults = {"checkpoint_dir": str(model_dir), "may_score": True}
        model: TransformerDecoder = instantiate(component, defaults=defaults)
    model.to(dtype)
    add_score(model)
    return model


def choose_trained(
    model: TransformerDecoder,
    settings: Mapping[str, Any] | None,
    adapter_dir: Path | None,
    mesh: Mesh,
    *,
    required: bool,
) -> int:
    """Put adapters beside a model's weights where that is asked for; return over how many processes it is to be cut.

    Every process must call this. Adapters are fp32: bf16 loses small steps. A base that fits is held whole by every
    process, unless that is ruled out (`shard_dim_of_base`).

    Args:
        model: on the meta device.
        settings: of adapters, as `choose_lora` takes them; None: every weight is trained.
        adapter_dir: of an adapter to go on from.
        mesh: the processes of the run.
        required: shards were asked for.

    Raises:
        ConfigError, CheckpointError: as `add_adapters` and `shard_dim_of_base`.
    """
    if settings is None:
        return mesh.shard_dim
    add_adapters(model, settings, adapter_dir, torch.float32)
    return shard_dim_of_base(model, mesh, required=required)


def begin_adapters(
    model: TransformerDecoder, directory: Path | None, base: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Give the adapters of a model whose base is loaded their values: those of a directory, or new ones.

    Args:
        model: with adapters, see `add_adapters`; without, it is left alone.
        directory: of an adapter to go on from; None: there is none.
        base: where the model was read from.
        dtype: of the adapters.

    Raises:
        ConfigError, CheckpointError: as `reset_adapters` and `load_adapter`.
    """
    if not adapter_parameters(model):
        return
    reset_adapters(model, dtype)
    if directory:
        load_adapter(model, directory, base=base)
