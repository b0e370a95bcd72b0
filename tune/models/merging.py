"""An adapter made part of its base: the model that does both, in files, compared before it gets its place."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tune.checkpoints import (
    adapter_tokenizer_dir,
    add_adapters,
    base_difference,
    carried_tensors,
    find_adapter_dir,
    find_layout,
    find_model_dir,
    load_adapter,
    load_into,
    open_weights,
    read_adapter_base,
    read_base_quantization,
    save_model,
    staged_directory,
)
from tune.errors import CheckpointError, TokenizerError
from tune.models.loading import auto, from_checkpoint, read_model_config
from tune.modules import TransformerDecoder
from tune.modules.peft import adapted_modules, has_token_rows
from tune.tokenizers import from_checkpoint as tokenizer_from_checkpoint
from tune.tokenizers import note_tokens_without_row
from tune.utils.paths import expand_path

_NUM_PROBED = 32  # tokens that base, adapted and merged model are asked about
# Largest part of the logits that merging may change: rounding of one matrix each, in the type they are stored in.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}


@dataclass(frozen=True)
class Drift:
    """How far a merged model is from what its adapter was trained beside: the base in 4 bits.

    Args:
        quantization: what the base was kept in, "nf4".
        logits_max, logits_mean: largest and mean absolute difference of a logit.
        num_same: positions whose likeliest token is the same.
        num_positions: positions asked about, of tokens drawn at random.
    """

    quantization: str
    logits_max: float
    logits_mean: float
    num_same: int
    num_positions: int


@dataclass(frozen=True)
class MergeReport:
    """What was merged, and what comparing it gave.

    Args:
        adapter: the adapter's folder.
        base: the folder of the model it was trained beside.
        directory: the merged model's.
        dtype: what the merged weights are written in.
        num_matrices: matrices that had an adapter.
        num_moved: those of them that changed.
        logits_moved: length of the change of the logits by the adapter, over the length of the base's.
        logits_off: length of what merging changed in the adapted model's logits, over the length of these.
        drift: from what training saw; None where the adapter does not say that its base was in 4 bits.
        notes: what else a person should know.
    """

    adapter: Path
    base: Path
    directory: Path
    dtype: torch.dtype
    num_matrices: int
    num_moved: int
    logits_moved: float
    logits_off: float
    drift: Drift | None = None
    notes: tuple[str, ...] = ()


@torch.no_grad()
def merge_adapter(
    adapter: str | Path,
    base: str | Path | None = None,
    to: str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> MergeReport:
    """Write the model that a base and its adapter are together, in Hugging Face layout, and compare it with the two.

    The merged model is read again from its files; it gets its name only when its matrices have moved and its logits
    are those of base and adapter side by side, to rounding. Where the adapter was trained beside a 4-bit base, how far
    the two are from that is measured as well. At most two copies of the model are in memory at a time.

    Args:
        adapter: a folder in PEFT layout, a saved step or an output directory of a run that has adapters.
        base: the model's folder; None: the one that the adapter names.
        to: folder to write, which is empty or does not exist; None: NAME-merged in the working directory.
        dtype: what the weights become; None: what the base's are.

    Raises:
        CheckpointError: there is no adapter or no base, they do not belong together, the adapter changes nothing, the
            merged model is not what the two are, or a file cannot be written.
    """
    try:
        adapter_dir = find_adapter_dir(expand_path(adapter))
        base_dir = find_model_dir(_base_of(adapter_dir) if base is None else base)
        directory = expand_path(to) if to is not None else Path.cwd() / f"{_name_of(adapter_dir)}-merged"
        if directory.is_symlink() or (directory.exists() and not _is_free(directory)):
            raise CheckpointError(f"{directory} is there already; choose another folder to write to")
    except OSError as error:
        raise CheckpointError(f"{error.filename or adapter} cannot be read: {error.strerror}") from error
    stored = _stored_dtype(base_dir)
    written = dtype or (stored if isinstance(stored, torch.dtype) else torch.float32)
    doubt = "" if base is None else base_difference(base_dir, adapter_dir)
    notes = [doubt] if doubt else []
    with staged_directory(directory) as staging:
        # Rounded once, when it is written: neither base nor adapter is brought to a smaller type before they are added.
        wide = torch.promote_types(written, stored) if isinstance(stored, torch.dtype) else written
        model = from_checkpoint(base_dir, dtype=wide)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, model.config.vocab_size, (1, _NUM_PROBED), generator=generator)
        alone = model(tokens).float()
        load_adapter(model, adapter_dir, torch.promote_types(wide, torch.float32))
        model.eval()
        num_known, brings_rows = alone.shape[-1], bool(model.replaced_weights) or has_token_rows(model)
        # Tokens that the base does not know come after the others, which do not see them.
        new_tokens = torch.arange(num_known, model.config.vocab_size)[None, :_NUM_PROBED]
        tokens = torch.cat([tokens, new_tokens], 1)
        adapted = model(tokens).float()
        paths = list(adapted_modules(model))

        tokenizer_dir = adapter_tokenizer_dir(base_dir, adapter_dir)
        _save(model, staging, tokenizer_dir, written, notes)
        del model
        merged = from_checkpoint(staging, dtype=written)
        logits = merged(tokens).float()
        off = _part(logits - adapted, adapted)
        num_moved = _count_moved(merged, base_dir, paths, written)
        if num_moved == 0 and not brings_rows:
            raise CheckpointError(
                f"the adapter in {adapter_dir} changes none of the {len(paths)} matrices it is beside (B is zero, or "
                "too small for their type); nothing was written"
            )
        if not off <= _TOLERANCE[written]:
            raise CheckpointError(
                f"merged, the logits differ from those of base and adapter side by side by {off:.2%}, where rounding "
                f"explains {_TOLERANCE[written]:.2%}; nothing was written. With --dtype fp32 less is rounded."
            )
        del merged
        drift = _measure_drift(logits, adapter_dir, base_dir, written, tokens, notes)
    return MergeReport(
        adapter_dir,
        base_dir,
        directory,
        written,
        num_matrices=len(paths),
        num_moved=num_moved,
        logits_moved=_part(adapted[:, :_NUM_PROBED, :num_known] - alone, alone),
        logits_off=off,
        drift=drift,
        notes=tuple(notes),
    )


def _stored_dtype(base_dir: Path) -> torch.dtype | str:
    """Return the type that most of a decoder's numbers are stored in."""
    family, config = read_model_config(base_dir)
    source = open_weights(base_dir)
    others = carried_tensors(source, find_layout(family, source), config)
    counts: Counter[torch.dtype | str] = Counter()
    for name, info in source.infos.items():
        counts[info.dtype] += 0 if name in others else math.prod(info.shape)
    return counts.most_common(1)[0][0] if counts else torch.float32


def _is_free(directory: Path) -> bool:
    """Tell whether a folder holds nothing, but for what a merge that was stopped has left hidden in it."""
    return directory.is_dir() and all(path.name.startswith(".") for path in directory.iterdir())


def _base_of(adapter_dir: Path) -> Path:
    name = read_adapter_base(adapter_dir)
    if not name:
        raise CheckpointError(
            f"{adapter_dir} does not say what model it was trained beside: give its folder (--base)"
        )
    if not expand_path(name).is_dir():
        raise CheckpointError(
            f"{adapter_dir} was trained beside {name}, which is no folder here: give the folder of that model "
            "(--base); `tune download` fetches one from the hub"
        )
    return expand_path(name)


def _name_of(adapter_dir: Path) -> str:
    folder = adapter_dir.resolve()
    return folder.parent.name if folder.name == "adapter" else folder.name


def _save(
    model: TransformerDecoder, staging: Path, tokenizer_dir: Path, dtype: torch.dtype, notes: list[str]
) -> None:
    tokenizer = None
    try:
        tokenizer = tokenizer_from_checkpoint(tokenizer_dir)
    except TokenizerError as error:
        notes.append(f"no tokenizer was copied: {error}")
    else:
        if note := note_tokens_without_row(tokenizer, model.config.vocab_size):
            notes.append(note)
    save_model(model, staging, tokenizer=tokenizer, dtype=dtype)


def _count_moved(merged: TransformerDecoder, base_dir: Path, paths: list[str], dtype: torch.dtype) -> int:
    base = from_checkpoint(base_dir, dtype=dtype)
    return sum(
        not torch.equal(merged.get_parameter(f"{path}.weight"), base.get_parameter(f"{path}.weight"))
        for path in paths
    )


def _measure_drift(
    logits: Tensor,
    adapter_dir: Path,
    base_dir: Path,
    dtype: torch.dtype,
    tokens: Tensor,
    notes: list[str],
) -> Drift | None:
    """Compare the merged model's logits with those of the adapter beside the base that its training saw."""
    quantization = read_base_quantization(adapter_dir)
    if not quantization:
        return None
    if quantization != "nf4":
        notes.append(
            f"trained beside a base in {quantization}, which is not known here: no drift was measured"
        )
        return None
    with torch.device("meta"):
        model = auto(str(base_dir))
        add_adapters(model, {"quantize_base": True}, adapter_dir, dtype)
    load_into(model, open_weights(base_dir), dtype=dtype)
    load_adapter(model, adapter_dir)
    seen = model.eval()(tokens).float()  # [1, s, v]
    off = (logits - seen).abs()
    same = logits.argmax(-1) == seen.argmax(-1)  # [1, s]
    return Drift(quantization, float(off.max()), float(off.mean()), int(same.sum()), same.numel())


def _part(change: Tensor, whole: Tensor) -> float:
    return float(change.norm() / whole.norm().clamp(min=1e-30))
