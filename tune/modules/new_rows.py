"""A vocabulary that grows: more rows for the embedding, and for the output matrix where it has its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from tune.errors import ConfigError
from tune.modules.decoder import TransformerDecoder
from tune.modules.peft.lora import LoRALinear

# Where a model keeps a row for each token.
ROWS_OF_TOKENS = ("tok_embeddings.weight", "output.weight")
# And where it keeps what each of its layers is told of a token; these rows are never trained on their own.
TABLE_OF_TOKENS = "per_layer_input.table.weight"


@torch.no_grad()
def resize_vocabulary(model: TransformerDecoder, vocab_size: int) -> None:
    """Give a model's embedding and output matrix more rows, in place; each new one is the mean of the old ones.

    As transformers' `resize_token_embeddings` does it, but for the mean itself, where that one draws numbers close to
    it. On the meta device the rows get their values when the weights are loaded.

    Args:
        model: before it is wrapped, compiled or given to an optimizer.
        vocab_size: rows from now on; a model that has as many is left as it is.

    Raises:
        ConfigError: the model has more rows, or an adapter beside its output matrix.
    """
    if vocab_size == model.config.vocab_size:
        return
    if vocab_size < model.config.vocab_size:
        raise ConfigError(f"the model knows {model.config.vocab_size} tokens, and {vocab_size} are fewer")
    if isinstance(model.output, LoRALinear):
        raise ConfigError(
            "new tokens need new rows of the output matrix, and an adapter beside it would change them all: set "
            "apply_lora_to_output to false"
        )
    if model.num_stored_rows is None:
        model.num_stored_rows = model.config.vocab_size
    _resize_table(model, vocab_size)
    model.config = replace(model.config, vocab_size=vocab_size)
    for module in (model.tok_embeddings, model.output):
        if module is not None:
            # Rows of tokens that are trained on their own stay what they are.
            rows = with_mean_rows(module.weight, vocab_size)
            module.weight = nn.Parameter(rows, requires_grad=module.weight.requires_grad)
    model.tok_embeddings.num_embeddings = vocab_size
    if model.output is not None:
        model.output.out_features = vocab_size


def _resize_table(model: TransformerDecoder, vocab_size: int) -> None:
    """Give the table of a model whose layers have inputs of their own a row for each token, if it has fewer."""
    given = model.config.per_layer_input
    if model.per_layer_input is None or given is None or given.vocab_size >= vocab_size:
        return
    if model.num_stored_table_rows is None:
        model.num_stored_table_rows = given.vocab_size
    model.config = replace(model.config, per_layer_input=replace(given, vocab_size=vocab_size))
    table = model.per_layer_input.table
    rows = with_mean_rows(table.weight, vocab_size)
    table.weight = nn.Parameter(rows, requires_grad=table.weight.requires_grad)
    table.num_embeddings = vocab_size


@torch.no_grad()
def with_mean_rows(matrix: Tensor, num_rows: int) -> Tensor:
    """Return a matrix with more rows, each of which is the mean of those it has, rounded once."""
    grown = matrix.new_empty(num_rows, matrix.shape[1])
    if not matrix.is_meta:
        wide = torch.promote_types(matrix.dtype, torch.float32)
        grown[: matrix.shape[0]] = matrix
        grown[matrix.shape[0] :] = matrix.mean(0, dtype=wide).to(matrix.dtype)
    return grown


@torch.no_grad()
def untie_output(model: TransformerDecoder) -> None:
    """Give a model that ties its output matrix to the embedding one of its own, with the same values, in place."""
    weight = model.tok_embeddings.weight
    output = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    output.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    model.output = output.train(model.training)
    model.config = replace(model.config, tie_word_embeddings=False)
