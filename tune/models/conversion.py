"""From any layout of a checkpoint into any other, one tensor at a time, and read again before it counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from tune.checkpoints import (
    MAX_SHARD_BYTES,
    Carried,
    CarriedTensor,
    LayoutTensor,
    StoredWeights,
    WeightSource,
    carried_tensors,
    copy_side_files,
    count_nonfinite,
    describe_model,
    describe_nonfinite,
    find_carried,
    find_model_dir,
    match_weights,
    open_weights,
    read_json,
    require_space,
    same_bits,
    staged_directory,
    tensors_in_layout,
    token_ids,
    weight_shapes,
    write_json,
    write_pickle,
    write_shards,
)
from tune.errors import CheckpointError, ConfigError, TokenizerError
from tune.models.loading import read_model_config
from tune.modules import DecoderConfig, Family, Layout, TransformerDecoder
from tune.tokenizers import from_checkpoint, note_tokens_without_row
from tune.utils import expand_path, get_dtype
from tune.utils.precision import DTYPE_NAMES

LAYOUTS = {"hf": "Hugging Face", "meta": "Meta", "tune": "torchtune"}
# The name under which torchtune itself wrote a model after its first epoch.
TORCHTUNE_FILE = "torchtune_model_0.pt"
# Of a source's config.json: what belongs to its tokenizer and to training from scratch.
_CARRIED = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "initializer_range")


# Is told that a phase begins, "write" or "verify", of so many bytes; returns what is told how many more are done.
Progress = Callable[[str, int], Callable[[int], None]]


@dataclass(frozen=True)
class ConversionReport:
    """What was converted and verified.

    Args:
        source, directory: from where, to where.
        family: the model's `model_type`.
        from_layout, to_layout: in words.
        num_tensors, num_bytes: written, those that were carried over among them.
        num_carried: tensors that are no part of the decoder, and were copied byte for byte.
        dtypes: what was written, such as "bfloat16".
        num_exact: tensors of the source that are the same to the bit when read back from `directory`.
        num_cast: those that equal the source's in the type that was asked for.
        left_out: tensors of the source that carry nothing a model needs.
        side_files: files that were carried over.
        notes: what a person should know.
    """

    source: Path
    directory: Path
    family: str
    from_layout: str
    to_layout: str
    num_tensors: int
    num_bytes: int
    num_carried: int
    dtypes: tuple[str, ...]
    num_exact: int
    num_cast: int
    left_out: tuple[str, ...]
    side_files: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """What is known before anything is written."""

    folder: Path
    source: WeightSource
    family: Family
    config: DecoderConfig
    from_layout: Layout
    to_layout: Layout
    stored: StoredWeights
    originals: list[LayoutTensor]  # as the source has them
    tensors: list[LayoutTensor]  # as they will be written
    carried: Carried | None  # what goes along beside them

    @property
    def others(self) -> tuple[CarriedTensor, ...]:
        """The tensors that go along untouched."""
        return () if self.carried is None else self.carried.tensors

    @property
    def read(self) -> list[LayoutTensor | CarriedTensor]:
        """All tensors of the source that count."""
        return [*self.originals, *self.others]

    @property
    def written(self) -> list[LayoutTensor | CarriedTensor]:
        """All tensors that are written."""
        return [*self.tensors, *self.others]


def convert_checkpoint(
    src: str | Path,
    dest: str | Path,
    to: str = "hf",
    dtype: str | None = None,
    *,
    force: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: Progress | None = None,
) -> ConversionReport:
    """Write a checkpoint in another layout, verify it by reading it again, and only then give it its place.

    One tensor is in memory at a time. `dest` is left as it was if anything fails or stops the conversion.

    Args:
        src: a model's folder in Hugging Face, Meta or torchtune layout, a saved step, an output directory, or one
            weight file with its configuration beside it.
        dest: a folder that is empty or does not exist; it may not lie in `src`, nor `src` in it.
        to: "hf" (safetensors, with an index where there are several), "meta" (consolidated.00.pth with params.json)
            or "tune" (torchtune's names in one file, with a config.json beside it).
        dtype: what the weights become, "fp32", "fp16" or "bf16"; None: what they are, tensor by tensor.
        force: replace a model that `dest` holds, its tokenizer and terms included; other files are left alone.
        max_shard_bytes: size of one safetensors file.
        progress: is told of each phase, and in it of every few megabytes.

    Raises:
        CheckpointError: the source cannot be read or is no whole model, its family has no such layout, a value has
            no place in `dtype`, `dest` cannot take it, or what was written does not read back the same.
        ConfigError: `to` or `dtype` is no such name.
    """
    plan = _make_plan(src, to, dtype)
    description = _describe(plan, to)
    directory = expand_path(dest)
    _refuse_overlap(plan.folder, expand_path(src), directory)
    num_bytes = sum(tensor.nbytes for tensor in plan.written)
    with staged_directory(directory, force=force) as staging:
        require_space(directory, num_bytes)
        side_files = copy_side_files(plan.folder, staging)
        notes = _write_description(plan, description, staging, to)
        advance = None if progress is None else progress("write", num_bytes)
        try:
            if to == "hf":
                write_shards(staging, plan.written, max_shard_bytes, advance)
            else:
                name = "consolidated.00.pth" if to == "meta" else TORCHTUNE_FILE
                write_pickle(staging / name, plan.tensors, advance)
        except OSError as error:
            raise CheckpointError(
                f"the weights cannot be written to {directory}: {error.strerror}"
            ) from error
        if progress is not None:
            advance = progress("verify", sum(tensor.nbytes for tensor in plan.read))
        num_exact, num_cast, nonfinite = _verify(plan, staging, advance)
    if nonfinite:  # what a checkpoint holds is kept as it is, and said
        notes.append(
            f"the weights hold {describe_nonfinite(nonfinite)}; no model can be run or trained with them"
        )
    with suppress(TokenizerError):  # there need be none
        if note := note_tokens_without_row(from_checkpoint(plan.folder), plan.config.vocab_size):
            notes.append(note)
    if to == "meta" and "tokenizer.model" not in side_files:
        notes.append("Meta's own programs need tokenizer.model, which the source does not hold")
    known = {tensor.name for tensor in plan.read} | {plan.from_layout.tied_output}
    left_out = tuple(name for name in plan.source if name not in known)
    if outer := plan.from_layout.outer if plan.carried is None else None:
        notes.append(
            f"the text model alone: {len(left_out)} tensors of the {outer.architecture} are left out"
        )
    return ConversionReport(
        source=plan.folder,
        directory=directory,
        family=plan.family.name,
        from_layout=plan.from_layout.name,
        to_layout=plan.to_layout.name,
        num_tensors=len(plan.tensors) + len(plan.others),
        num_bytes=num_bytes,
        num_carried=len(plan.others),
        dtypes=tuple(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in plan.tensors})),
        num_exact=num_exact,
        num_cast=num_cast,
        left_out=left_out,
        side_files=tuple(side_files),
        notes=tuple(notes),
    )


def _make_plan(src: str | Path, to: str, dtype: str | None) -> _Plan:
    if to not in LAYOUTS:
        raise ConfigError(f"there is no layout {to!r}: only {', '.join(LAYOUTS)}")
    if dtype is not None and dtype not in DTYPE_NAMES:
        raise ConfigError(f"there is no dtype {dtype!r}: only {', '.join(DTYPE_NAMES)}")
    path = expand_path(src)
    folder = path.parent if path.is_file() and path.name not in ("latest", "best") else find_model_dir(path)
    source = open_weights(path if path.is_file() and folder == path.parent else folder)
    family, config = read_model_config(folder)
    layouts = {"hf": family.hf, "meta": family.meta, "tune": family.torchtune}
    if layouts[to] is None:
        has = [name for name, layout in layouts.items() if layout]
        raise CheckpointError(
            f"the {family.name} family has no {LAYOUTS[to]} layout; {folder} can be converted to {' or '.join(has)}"
        )
    if config.num_layers > len(source):
        raise CheckpointError(
            f"the configuration in {folder} speaks of {config.num_layers} layers, and the weights are only "
            f"{len(source)} tensors"
        )
    if not (folder / "config.json").is_file():
        config = _tied_where_equal(family, config, source)
    with torch.device("meta"):
        model = TransformerDecoder(config, family)
    shapes = weight_shapes(model)
    layout, stored = match_weights(source, family, config, shapes)
    originals = tensors_in_layout(stored, layout, config)
    # A larger model stays what it is in the layout that has room for all of it.
    carried = find_carried(source, layout, config) if to == "hf" else None
    target = layouts[to] if carried is None else carried.layout
    assert target is not None
    tensors = tensors_in_layout(
        stored,
        target,
        config,
        dtype=None if dtype is None else get_dtype(dtype),
        repeat_tied=to == "meta",
    )
    return _Plan(folder, source, family, config, layout, target, stored, originals, tensors, carried)


def _tied_where_equal(family: Family, config: DecoderConfig, source: WeightSource) -> DecoderConfig:
    """Return the sizes with the output matrix tied where Meta's layout, which always has it, repeats the embedding."""
    if family.meta is None or family.meta.tied_output not in source:
        return config
    embedding = next(rule.theirs for rule in family.meta.rules if rule.ours == "tok_embeddings.weight")
    is_same = embedding in source and same_bits(source.read(embedding), source.read(family.meta.tied_output))
    return replace(config, tie_word_embeddings=True) if is_same else config


def _describe(plan: _Plan, to: str) -> dict[str, Any]:
    """Return the content of config.json or params.json, once it is certain that it describes the same model."""
    if to == "meta":
        assert plan.family.write_meta_config is not None
        return plan.family.write_meta_config(plan.config)  # it refuses what params.json has no words for
    description = describe_model(plan.family, plan.config, plan.tensors, plan.carried)
    described = plan.family.read_hf_config(json.loads(json.dumps(description)))
    different = [
        f"{field.name}: {getattr(plan.config, field.name)} became {getattr(described, field.name)}"
        for field in fields(plan.config)
        if getattr(plan.config, field.name) != getattr(described, field.name)
    ]
    if different:
        raise CheckpointError(
            f"{plan.to_layout.name} layout cannot describe this model; nothing was written.\n  "
            + "\n  ".join(different)
        )
    if plan.carried is not None:  # which keeps what it says itself
        return description
    for name in ("generation_config.json", "config.json"):  # Meta's layout has the first alone
        if (plan.folder / name).is_file():
            original = read_json(plan.folder / name)
            description |= {key: original[key] for key in _CARRIED if key in original}
    return description


def _write_description(plan: _Plan, description: dict[str, Any], staging: Path, to: str) -> list[str]:
    """Write config.json or params.json; return what a person should know."""
    if to == "meta":
        write_json(staging / "params.json", description)
        return []
    write_json(staging / "config.json", description)
    if (staging / "tokenizer_config.json").exists():
        return []
    # From Meta's files: what other tools need beside a bare tokenizer.model.
    try:
        tokenizer = from_checkpoint(staging)
        tokenizer.write_settings(staging)
    except TokenizerError as error:
        reason = str(error).splitlines()[0].partition(";")[0].replace(str(staging), str(plan.folder))
        return [f"other tools may find no tokenizer: {reason}"]
    # What the source says itself counts more.
    write_json(staging / "config.json", {**description, **token_ids(tokenizer), **description})
    return []


def _verify(
    plan: _Plan, staging: Path, advance: Callable[[int], None] | None
) -> tuple[int, int, list[tuple[str, int, int]]]:
    """Read what was written, bring it back into the source's layout, and compare it with the source.

    Returns:
        How many tensors are the same to the bit, how many are after a change of type, and which hold values that are
        not finite.
    """
    written = open_weights(staging)
    planned = {tensor.name: (tensor.shape, tensor.dtype) for tensor in plan.written}
    found = {name: (info.shape, info.dtype) for name, info in written.infos.items()}
    if planned != found:
        wrong = sorted(name for name in planned.keys() | found.keys() if planned.get(name) != found.get(name))
        raise CheckpointError(f"what was written is not what was meant: {', '.join(wrong[:8])}")
    family, _ = read_model_config(staging)
    if family is not plan.family:
        raise CheckpointError(
            f"what was written reads as {family.name}, and the source is {plan.family.name}"
        )
    back = StoredWeights(written, plan.to_layout, plan.config, plan.stored.shapes)
    num_exact = num_cast = 0
    nonfinite = []
    for tensor in tensors_in_layout(back, plan.from_layout, plan.config):
        original = plan.source.read(tensor.name)
        _require_same(tensor.name, tensor.read(), original.to(tensor.dtype))
        if count := count_nonfinite(original):
            nonfinite.append((tensor.name, count, original.numel()))
        is_exact = original.dtype == tensor.dtype
        num_exact, num_cast = num_exact + is_exact, num_cast + (not is_exact)
        if advance is not None:
            advance(original.nbytes)
    copies = carried_tensors(written, plan.to_layout, plan.config)
    for other in plan.others:
        if other.digest() != copies[other.name].digest():
            raise _reads_otherwise(other.name)
        num_exact += 1
        if advance is not None:
            advance(other.nbytes)
    repeated = plan.to_layout.tied_output
    if plan.config.tie_word_embeddings and repeated in written:
        _require_same(repeated, written.read(repeated), back.read("tok_embeddings.weight"))
    return num_exact, num_cast, nonfinite


def _require_same(name: str, found: torch.Tensor, wanted: torch.Tensor) -> None:
    if not same_bits(found, wanted):
        raise _reads_otherwise(name)


def _reads_otherwise(name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} reads back with other values than it was written with: the disk or the memory of this machine "
        "may be failing; nothing was kept"
    )


def _refuse_overlap(folder: Path, src: Path, directory: Path) -> None:
    inner, outer = folder.resolve(), directory.resolve()
    if inner == outer:
        raise CheckpointError(f"{directory} is the source itself; choose another folder")
    if inner.is_relative_to(outer) or (outer.is_relative_to(inner) and not src.is_file()):
        raise CheckpointError(
            f"{directory} and the source {folder} lie in one another; choose a folder beside it, such as "
            f"{folder.resolve()}-converted"
        )
