"""What `tune validate --preflight` says of memory: the recipe's own plan, made without weights or data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from tune.checkpoints import find_model_dir
from tune.config.instantiate import instantiate
from tune.errors import TuneError
from tune.modules import TransformerDecoder
from tune.modules.peft import adapter_parameters, apply_lora, choose_lora
from tune.training.building import build_on_meta, build_reward_model
from tune.training.memory.available import available_memory
from tune.training.memory.plan import LongestRow, MemoryPlan, plan_memory
from tune.training.memory.prediction import PlannedRun
from tune.training.precision import plan_precision
from tune.training.teacher import Teacher
from tune.utils.precision import get_dtype

__all__ = ["Judgement", "judge_memory"]

# Where nothing says how long texts may be: few examples of instruction data are longer.
_USUAL_LENGTH = 2048


class Judgement(NamedTuple):
    """Whether there is enough memory (None: perhaps not, it is a prediction), in a sentence and in lines of a table."""

    ok: bool | None
    text: str
    table: tuple[str, ...] = ()


def judge_memory(params: Any, device: torch.device) -> Judgement | None:
    """Return what a run with `params` will need of `device`; None where its model's sizes are not known here yet."""
    try:
        model = _build_model(params)
        if model is None:
            return None
        return (_judge_training if hasattr(params, "optimizer") else _judge_weights)(params, model, device)
    except TuneError as error:
        return Judgement(None, f"cannot be predicted: {error}")


def _judge_training(params: Any, model: TransformerDecoder, device: torch.device) -> Judgement:
    seq_len, source = _longest(params, model)
    plan = _plan(params, model, device, seq_len)
    text = f"{plan.verdict().removeprefix('memory: ')} ({params.batch_size} x {seq_len} tokens, {source})"
    if not plan.is_tight:
        return Judgement(None if plan.available is None else True, text)
    return Judgement(None, text, (*plan.table(), *plan.advice_lines()))


def _judge_weights(params: Any, model: TransformerDecoder, device: torch.device) -> Judgement:
    # As the recipe chooses it.
    dtype = get_dtype(params.dtype or ("fp32" if device.type == "cpu" else "bf16"), device)
    needed = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    available = available_memory(device)
    text = f"{needed / 2**30:.2f} GiB of weights"
    if available is None:
        return Judgement(None, text)
    text += f"; {available / 2**30:.2f} GiB available on {device}"
    return Judgement(True if needed < available else None, text)


def _build_model(params: Any) -> TransformerDecoder | None:
    """Return the model without memory, with the adapters it would have; None where it is not known which."""
    checkpointer = getattr(params, "checkpointer", None)
    folder = str(checkpointer.kwargs.get("checkpoint_dir") or "") if checkpointer else ""
    if not folder and hasattr(params, "model_checkpoint"):
        folder = str(params.model_checkpoint or "")
    try:
        model_dir = find_model_dir(folder) if folder else None
    except TuneError:
        model_dir = None  # said already, where files are looked for
    if model_dir is None and params.model.path.endswith(".auto"):
        return None
    build = build_reward_model if getattr(params, "gives_scores", False) else build_on_meta
    model = build(params.model, model_dir or Path(), torch.float32)
    adapts = hasattr(params, "lora_settings") and getattr(params, "trains_adapters", lambda: True)()
    if adapts and not adapter_parameters(model):
        apply_lora(model, choose_lora(params.lora_settings()))
    return model


def _longest(params: Any, model: TransformerDecoder) -> tuple[int, str]:
    """Return the tokens of the longest row, and how that is known."""
    datasets = params.dataset if isinstance(params.dataset, tuple) else (params.dataset,)
    for name, component in (("tokenizer", params.tokenizer), *(("dataset", dataset) for dataset in datasets)):
        given = component.kwargs.get("max_seq_len")
        if isinstance(given, int):
            return given, f"{name}.max_seq_len"
    guess = min(_USUAL_LENGTH, model.config.max_seq_len)
    return guess, "a guess: tokenizer.max_seq_len is not set"


def _plan(params: Any, model: TransformerDecoder, device: torch.device, seq_len: int) -> MemoryPlan:
    datasets = params.dataset if isinstance(params.dataset, tuple) else (params.dataset,)
    shard_dim = max(params.data_parallel_shard_dim, 1) if params.enable_fsdp else 1
    precision = plan_precision(params.dtype, params.param_dtype, device)
    loss_fn = instantiate(params.loss, defaults={"reduction": "sum"})
    beside: dict[str, Any] = {}
    if hasattr(params, "teacher_settings"):
        teacher = Teacher(dtype=precision.compute_dtype, **params.teacher_settings())
        loss_fn, beside = teacher.planned(loss_fn, instantiate(params.kd_component())), teacher.sizes()
    settings = params.memory_settings() | beside
    run = PlannedRun(model, loss_fn, precision, shard_dim=shard_dim, **settings)
    row = LongestRow(seq_len, any(bool(dataset.kwargs.get("packed")) for dataset in datasets))
    return plan_memory(run, row, device)
