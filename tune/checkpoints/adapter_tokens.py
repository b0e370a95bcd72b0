"""Embedding and output matrix in the files of an adapter: rows of some tokens, or all of them.

peft writes them in four forms: `modules_to_save` (a matrix that was trained whole), `trainable_token_indices` (rows),
matrices that were resized before training, and matrices of the base as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tune.checkpoints.adapter_config import AdapterSettings
from tune.checkpoints.adapter_layout import PREFIX
from tune.checkpoints.mapping import lending_of, places_by_name
from tune.checkpoints.weights import WeightSource
from tune.errors import CheckpointError
from tune.modules import Layout, TransformerDecoder
from tune.modules.new_rows import ROWS_OF_TOKENS, resize_vocabulary, untie_output
from tune.modules.peft import LoRALinear, TokenRowsEmbedding, TokenRowsLinear, add_token_rows
from tune.modules.score import SCORE
from tune.utils.sharding import copy_into_, full_tensor

_ROWS = "token_adapter.trainable_tokens_delta"
# Where peft leaves the whole matrix, the one that counts first.
_WHOLE = ("weight", "modules_to_save.weight", "token_adapter.base_layer.weight")
_UNUSED = ("original_module.weight", "modules_to_save.weight")


@dataclass(frozen=True)
class TokenMatrix:
    """The embedding or the output matrix, as far as an adapter's file has it.

    Args:
        ours: our parameter's name.
        module: theirs.
        whole: tensor with all of it; None where the base's is meant.
        rows: tensor with rows of some tokens; None where there are none.
        token_ids: of those rows.
        is_trained: the whole matrix was trained, and goes on being trained.
        keeps_tie: as in `AdapterSettings`.
    """

    ours: str
    module: str
    whole: str | None
    rows: str | None
    token_ids: tuple[int, ...]
    is_trained: bool
    keeps_tie: bool


def token_modules(layout: Layout, model: TransformerDecoder) -> dict[str, str]:
    """Return the other tools' names of the modules that hold embedding and output matrix, ours to theirs."""
    theirs = {rule.ours: rule.theirs for rule in layout.rules if rule.ours in ROWS_OF_TOKENS}
    theirs[ROWS_OF_TOKENS[1]] = theirs.get(ROWS_OF_TOKENS[1], layout.tied_output)
    return {ours: name.removesuffix(".weight") for ours, name in theirs.items()}


def plan_token_matrices(
    source: WeightSource, settings: AdapterSettings, layout: Layout, model: TransformerDecoder
) -> tuple[list[TokenMatrix], set[str]]:
    """Return what an adapter's file has of embedding and output matrix, and the names of all tensors that are theirs.

    Raises:
        CheckpointError: it is not what the configuration says, or cannot be followed; all problems are listed.
    """
    modules = token_modules(layout, model)
    scores = {SCORE: SCORE.removesuffix(".weight")} if model.score is not None else {}
    if settings.scores and not scores:
        raise CheckpointError(
            f"the adapter in {source.path} is a reward model's (`task_type` is SEQ_CLS), which gives texts a score, "
            "and the model is one that writes them: it goes on in the recipe reward_finetune. Where a run has saved "
            "it, the finished reward model is in model/ beside it"
        )
    problems = [
        f"`modules_to_save` names {name!r}: only the embedding and the output matrix ({', '.join(modules.values())}) "
        "are read where they were trained whole"
        for name in settings.modules_to_save
        if not any(_is_named(module, name) for module in (*modules.values(), *scores.values()))
    ]
    problems += [
        f"`trainable_token_indices` names {name!r}, which is neither embedding nor output matrix"
        for name in settings.token_ids
        if name and not any(_is_named(module, name) for module in modules.values())
    ]
    matrices: list[TokenMatrix] = []
    taken = {_score_name(source)} if scores else set()
    for ours, module in modules.items():
        if ours == ROWS_OF_TOKENS[1] and isinstance(model.output, LoRALinear):
            continue  # its base is compared with ours
        rows = f"{PREFIX}{module}.{_ROWS}"
        whole = next((name for end in _WHOLE if (name := f"{PREFIX}{module}.{end}") in source), None)
        taken |= {rows, *(f"{PREFIX}{module}.{end}" for end in (*_WHOLE, *_UNUSED))}
        ids = next((ids for name, ids in settings.token_ids.items() if _is_named(module, name)), ())
        # Without a name the embedding is meant, and with it an output matrix that is tied to it.
        if not ids and (ours == ROWS_OF_TOKENS[0] or (model.output is None and rows in source)):
            ids = matrices[0].token_ids if matrices else settings.token_ids.get("", ())
        is_trained = any(_is_named(module, name) for name in settings.modules_to_save)
        matrix = TokenMatrix(
            ours, module, whole, rows if rows in source else None, ids, is_trained, settings.keeps_tie
        )
        problems += _problems(matrix, source, model)
        if matrix.whole or matrix.rows:
            matrices.append(matrix)
    problems += _problems_of_tie(matrices, source, model)
    if problems:
        raise CheckpointError(
            f"the adapter in {source.path} does not fit the model; nothing was loaded.\n  "
            + "\n  ".join(problems)
        )
    return matrices, taken & set(source)


def apply_token_matrices(
    model: TransformerDecoder, matrices: list[TokenMatrix], source: WeightSource
) -> None:
    """Make a model ready for the matrices of an adapter: rows for all tokens, trained ones where there are some.

    Args:
        model: with or without memory, before it is wrapped, compiled or given to an optimizer.
        matrices: from `plan_token_matrices`.
        source: the adapter's file.

    Raises:
        CheckpointError: they were trained apart beside a base that ties them, and the model has no memory yet.
    """
    rows = [source.infos[matrix.whole].shape[0] for matrix in matrices if matrix.whole]
    rows += [1 + max(matrix.token_ids) for matrix in matrices if matrix.rows]
    resize_vocabulary(model, max(model.config.vocab_size, *rows, 0))
    if _splits_tie(matrices, source, model):
        if model.tok_embeddings.weight.is_meta:
            raise CheckpointError(
                f"the adapter in {source.path} has another output matrix than embedding, and the base ties the two "
                "(tie_word_embeddings): it can be asked and merged, and the merged model trained, but it cannot be "
                "trained further beside this base"
            )
        untie_output(model)
    for matrix in matrices:
        if matrix.ours == ROWS_OF_TOKENS[1] and model.output is None:
            continue
        if matrix.rows:
            add_token_rows(model, matrix.token_ids, (matrix.ours,))
        model.get_parameter(matrix.ours).requires_grad_(matrix.is_trained)
    model.replaced_weights |= {matrix.ours for matrix in matrices if matrix.whole}


@torch.no_grad()
def fill_token_matrices(
    model: TransformerDecoder, matrices: list[TokenMatrix], source: WeightSource, dtype: torch.dtype | None
) -> None:
    """Put the matrices and rows of an adapter into a model that is ready for them.

    Args:
        model: with its base's weights.
        matrices, source: as for `apply_token_matrices`.
        dtype: what rows without memory become; None: what their matrix is.

    Raises:
        CheckpointError: the model has no trained rows for some of the tokens, or numbers are not finite.
    """
    places = places_by_name(model)
    # All of them before anything changes.
    tensors = {
        name: _finite(source, name) for matrix in matrices for name in (matrix.whole, matrix.rows) if name
    }
    if model.score is not None and (name := _score_name(source)) in source:
        copy_into_(model.score.weight, _finite(source, name))
    for matrix in matrices:
        if matrix.ours not in places:
            continue  # tied, and compared
        owner: Any = places[matrix.ours].owner
        if matrix.whole:
            copy_into_(owner.weight, tensors[matrix.whole])
        if isinstance(owner, TokenRowsEmbedding | TokenRowsLinear) and (
            owner.token_rows.is_meta or matrix.whole
        ):
            owner.reset_token_rows(dtype)
        if matrix.rows:
            held = owner.token_ids if isinstance(owner, TokenRowsEmbedding | TokenRowsLinear) else ()
            if lacking := sorted(set(matrix.token_ids) - set(held)):
                raise CheckpointError(
                    f"the adapter in {source.path} has trained rows for tokens that the model has none for: "
                    f"{', '.join(map(str, lacking[:8]))}"
                )
            _fill_rows(owner, matrix, tensors[matrix.rows])


def _fill_rows(owner: TokenRowsEmbedding | TokenRowsLinear, matrix: TokenMatrix, rows: Tensor) -> None:
    if matrix.token_ids == owner.token_ids:
        copy_into_(owner.token_rows, rows)
        return
    # Others than the file's have begun as their matrix's own rows.
    whole = full_tensor(owner.token_rows.detach()).clone()
    whole[[owner.token_ids.index(token_id) for token_id in matrix.token_ids]] = rows.to(whole)
    copy_into_(owner.token_rows, whole)


def token_tensors(model: TransformerDecoder, layout: Layout) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return embedding and output matrix as an adapter's file has them, and what adapter_config.json says of them.

    Args:
        model: with adapters; weights that it lacks are lent to it.
        layout: gives the names.
    """
    modules, places = token_modules(layout, model), places_by_name(model)
    trained: list[str] = []
    indices: dict[str, list[int]] = {}
    tensors: dict[str, Tensor] = {}
    for ours in ROWS_OF_TOKENS:
        if ours not in places:
            continue
        owner, name = places[ours].owner, modules[ours]
        if isinstance(owner, TokenRowsEmbedding | TokenRowsLinear):
            indices[name.rpartition(".")[2]] = list(owner.token_ids)
            tensors[f"{PREFIX}{name}.{_ROWS}"] = owner.token_rows.detach().cpu()
        is_trained = model.get_parameter(ours).requires_grad
        if is_trained:
            trained.append(name.rpartition(".")[2])
        if is_trained or ours in model.replaced_weights:
            end = _WHOLE[2] if isinstance(owner, TokenRowsEmbedding | TokenRowsLinear) else _WHOLE[0]
            with lending_of(model)(owner):
                weight: Tensor = getattr(owner, places[ours].leaf)
                tensors[f"{PREFIX}{name}.{end}"] = weight.detach().cpu()
    fields: dict[str, Any] = {}
    if trained:
        fields["modules_to_save"] = trained
        if model.output is None:  # peft then looks for both
            fields["ensure_weight_tying"] = True
            name, tied = (f"{PREFIX}{modules[ours]}.weight" for ours in ROWS_OF_TOKENS)
            tensors[tied] = tensors[name].clone()
    if model.score is not None:
        fields["modules_to_save"] = [*trained, SCORE.removesuffix(".weight")]
        with lending_of(model)(model.score):
            tensors[f"{PREFIX}{SCORE}"] = model.score.weight.detach().cpu()
    if indices:
        fields["trainable_token_indices"] = indices
    return tensors, fields


def _score_name(source: WeightSource) -> str:
    """Return what the score's tensor is called in an adapter's file."""
    name = f"{PREFIX}{SCORE}"
    older = f"{PREFIX}{SCORE.removesuffix('weight')}modules_to_save.weight"
    return older if older in source else name


def _is_named(module: str, name: str) -> bool:
    return bool(name) and (module == name or module.endswith(f".{name}"))


def _problems(matrix: TokenMatrix, source: WeightSource, model: TransformerDecoder) -> Iterator[str]:
    width, vocab_size = model.config.embed_dim, model.config.vocab_size
    if matrix.is_trained and matrix.whole is None:
        is_tied = matrix.ours == ROWS_OF_TOKENS[1] and model.output is None
        if not is_tied:
            yield f"{PREFIX}{matrix.module}: `modules_to_save` names it, and it has no weights"
    if (
        matrix.rows is None
        and matrix.token_ids
        and not (matrix.ours == ROWS_OF_TOKENS[1] and model.output is None)
    ):
        yield f"{PREFIX}{matrix.module}: `trainable_token_indices` names it, and it has no rows"
    if matrix.rows is not None and not matrix.token_ids:
        yield f"{matrix.rows}: `trainable_token_indices` does not say of which tokens these rows are"
    wanted = ((matrix.rows, len(matrix.token_ids)), (matrix.whole, None))
    for name, num_rows in wanted:
        if name is None:
            continue
        info = source.infos[name]
        if isinstance(info.dtype, str):
            yield f"{name}: stored as {info.dtype}; only fp64, fp32, fp16 and bf16 are read"
        elif len(info.shape) != 2 or info.shape[1] != width:
            yield f"{name}: {list(info.shape)} in the file, where rows of {width} numbers are needed"
        elif num_rows is None and info.shape[0] < vocab_size:
            yield f"{name}: {info.shape[0]} rows in the file, fewer than the {vocab_size} of the model"
        elif num_rows is not None and info.shape[0] != num_rows:
            yield f"{name}: {info.shape[0]} rows in the file, and `trainable_token_indices` names {num_rows} tokens"
    if len(set(matrix.token_ids)) < len(matrix.token_ids) or any(
        token_id < 0 for token_id in matrix.token_ids
    ):
        yield f"{PREFIX}{matrix.module}: `trainable_token_indices` names a token twice, or one below 0"


def _problems_of_tie(
    matrices: list[TokenMatrix], source: WeightSource, model: TransformerDecoder
) -> Iterator[str]:
    """Yield what no one matrix can be, where embedding and output matrix are one."""
    rows = [matrix for matrix in matrices if matrix.rows]
    if model.output is None and len(rows) == 2:
        first, second = rows
        is_same = first.token_ids == second.token_ids and torch.equal(
            source.read(str(first.rows)), source.read(str(second.rows))
        )
        if not is_same:
            yield (
                f"{second.rows}: other rows than the embedding's, where the base ties the two (tie_word_embeddings)"
            )
    sizes = {source.infos[matrix.whole].shape[0] for matrix in matrices if matrix.whole}
    if len(sizes) > 1:
        yield f"embedding and output matrix have {' and '.join(map(str, sorted(sizes)))} rows in the file"


def _splits_tie(matrices: list[TokenMatrix], source: WeightSource, model: TransformerDecoder) -> bool:
    """Whether the file has other values for one of two matrices that the model ties."""
    wholes = [matrix for matrix in matrices if matrix.whole]
    if model.output is not None or not wholes:
        return False
    if len(wholes) == 2:
        first, second = (source.read(str(matrix.whole)) for matrix in wholes)
        return not torch.equal(first, second)
    # peft trains a copy of the one that it names; the other stays what it was.
    return wholes[0].is_trained and not wholes[0].keeps_tie


def _finite(source: WeightSource, name: str) -> Tensor:
    tensor = source.read(name)
    if not torch.isfinite(tensor).all():
        raise CheckpointError(
            f"the adapter in {source.path} holds numbers that are not finite, in {name}: the file is damaged, or its "
            "training diverged"
        )
    return tensor
