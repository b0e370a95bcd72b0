"""A step that could not be taken, kept for study: what went in, and where the numbers went bad.

OUTPUT_DIR/non_finite_step_000123/report_rank0.json            for people: examples, losses, weights, gradients
                                  batches_rank0.safetensors    the micro-batches, as they went into the model
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from tune.checkpoints.writers import replacing
from tune.errors import TrainingError
from tune.training.distributed.collective_failure import fail_together
from tune.training.saving.saved_steps import step_name
from tune.utils import get_logger
from tune.utils.mesh import Mesh
from tune.utils.sharding import local_part

__all__ = ["BatchLoss", "dump_nonfinite_step", "upcoming_sample_ids", "weights_are_finite"]

BatchLoss = Callable[[dict[str, Tensor]], tuple[Tensor, int]]

# Parameters named in a report, of weights and of gradients each; how many there are is always said.
_MAX_NAMED = 50


def upcoming_sample_ids(
    sampler: Iterable[int], micro_batches: Sequence[Mapping[str, Tensor]]
) -> list[list[int | None]]:
    """Return which examples of the dataset each micro-batch holds. Call it before `sampler.advance`.

    None stands for a row without content, which evens out the ranks at an epoch's end.
    """
    ids = (index if index >= 0 else None for index in sampler)
    return [list(islice(ids, _num_examples(batch))) for batch in micro_batches]


def _num_examples(batch: Mapping[str, Tensor]) -> int:
    """Return how many examples a batch is made of: rows; but pairs, and answers to be judged, have two rows each."""
    has_two = "verdicts" in batch and "input_pos" not in batch
    return len(batch["verdicts"] if has_two else batch["tokens"])


@torch.no_grad()
def weights_are_finite(model: nn.Module, mesh: Mesh) -> bool:
    """Tell whether every weight is a number, on all processes; each of them must call this."""
    bad = any(not bool(torch.isfinite(local_part(weight)).all()) for weight in model.parameters())
    return mesh.max(bad) == 0


def dump_nonfinite_step(
    output_dir: Path,
    step: int,
    model: nn.Module,
    micro_batches: Sequence[Mapping[str, Tensor]],
    mesh: Mesh,
    *,
    batch_loss: BatchLoss,
    sample_ids: Sequence[Sequence[int | None]] | None = None,
) -> Path | None:
    """Write what there is to know of a step whose loss or gradient is not finite; return where, None where it failed.

    Called while the error that ends the run is handled, and hardly ever in its way: what goes wrong here is a warning,
    on all ranks where sharded weights bind them together. Each rank writes files of its own, whole or not at all. Of
    sharded weights a rank counts its own shards.

    Args:
        output_dir: of the run.
        step: the step that was not taken; the weights are those before it.
        model: with its gradients, where they are there.
        micro_batches: of this rank, on any device.
        mesh: the processes of the run.
        batch_loss: returns a micro-batch's loss, and what it is divided by. Called without gradients, it finds the
            micro-batch and the module where the numbers first go bad.
        sample_ids: the dataset's indices of the examples in each, as `upcoming_sample_ids` gives them.

    Raises:
        TrainingError: sharded weights could not be brought together by this process, and the others wait for it: the
            run has to end here, see `fail_together`.
    """
    folder = output_dir / f"non_finite_{step_name(step)}"
    rank = mesh.rank
    try:
        with fail_together(model, mesh):
            weights = dict(model.named_parameters())
            gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
            report = {
                "step": step,
                "rank": rank,
                "world_size": mesh.world_size,
                "non_finite_weights": _count(weights),
                "non_finite_gradients": _count(gradients),
            }
            # Before anything is computed, which may fail.
            batches = _write_batches(folder, rank, micro_batches)
            report |= _look(model, micro_batches, sample_ids, batch_loss)
        report["batches"] = f"{batches.name}: MICRO_BATCH.FIELD, such as 0.tokens"
        # Last: where there is a report, the rest is there, too.
        with replacing(folder / f"report_rank{rank}.json") as staged:
            staged.write_text(_readable(report), encoding="utf-8")
    except TrainingError as error:
        raise TrainingError(
            f"step {step} has a loss or gradient that is no number, and could not be studied: {error}. Steps that "
            "were saved are intact."
        ) from error
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        get_logger().warning(f"step {step} could not be kept for study in {folder}: {error}")
        return None
    get_logger().warning(f"step {step} is kept for study in {folder}: {_summary(report)}")
    return folder


def _write_batches(folder: Path, rank: int, micro_batches: Sequence[Mapping[str, Tensor]]) -> Path:
    """Write what went into the model; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{index}.{name}": tensor.detach().cpu().contiguous()
        for index, batch in enumerate(micro_batches)
        for name, tensor in batch.items()
    }
    batches = folder / f"batches_rank{rank}.safetensors"
    with replacing(batches) as staged:
        save_file(tensors, staged)
    return batches


@torch.no_grad()
def _count(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return how many tensors hold numbers that are not finite, and of the first of them how many each."""
    bad = {}
    for name, tensor in tensors.items():
        local = local_part(tensor)  # the whole would take a collective
        if num_wrong := int((~torch.isfinite(local)).sum()):
            bad[name] = f"{num_wrong} of {local.numel()}"
    return {"num_tensors": len(bad), "of": len(tensors), "first": dict(islice(bad.items(), _MAX_NAMED))}


def _look(
    model: nn.Module,
    micro_batches: Sequence[Mapping[str, Tensor]],
    sample_ids: Sequence[Sequence[int | None]] | None,
    batch_loss: BatchLoss,
) -> dict[str, Any]:
    """Return what each micro-batch held and lost, and the module where the first one went bad."""
    rows: list[dict[str, Any]] = []
    first_bad: list[str] = []
    for index, batch in enumerate(micro_batches):
        row: dict[str, Any] = {"shape": list(batch["tokens"].shape)}
        if sample_ids is not None:
            row["sample_ids"] = list(sample_ids[index])
        with torch.no_grad(), torch.compiler.set_stance("force_eager"), _watch(model, first_bad):
            loss = float(batch_loss(dict(batch))[0])
        rows.append(row | {"loss": loss if math.isfinite(loss) else str(loss)})  # JSON knows no NaN
    return {"micro_batches": rows, "first_non_finite_output": first_bad[0] if first_bad else None}


@contextmanager
def _watch(model: nn.Module, first_bad: list[str]) -> Iterator[None]:
    """Note the first module whose output is not finite; inner modules end before those they are in."""

    def note(name: str, module: nn.Module, args: Any, output: Any) -> None:
        if first_bad or not isinstance(output, Tensor) or not output.is_floating_point():
            return
        if not bool(torch.isfinite(output).all()):
            first_bad.append(name)

    hooks = [
        module.register_forward_hook(partial(note, name)) for name, module in model.named_modules() if name
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _readable(report: Mapping[str, Any]) -> str:
    """Return a report as JSON, its lists of numbers on one line each."""
    text = json.dumps(report, indent=2)
    return re.sub(r"\[(?:\d|null|,|\s)+\]", lambda found: " ".join(found[0].split()), text) + "\n"


def _summary(report: Mapping[str, Any]) -> str:
    parts = []
    for kind in ("weights", "gradients"):
        count = report[f"non_finite_{kind}"]
        parts.append(f"{count['num_tensors']} of {count['of']} {kind} are not finite")
    if bad := [str(i) for i, row in enumerate(report["micro_batches"]) if isinstance(row["loss"], str)]:
        parts.append(f"nor is the loss of micro-batch {', '.join(bad)}")
    if where := report["first_non_finite_output"]:
        parts.append(f"the first bad number came out of {where}")
    return "; ".join(parts)
