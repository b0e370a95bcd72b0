"""Trained rows of some tokens: outputs and gradients are those of a whole matrix of which only these rows move."""

from __future__ import annotations

import pytest
import torch

from tune.errors import ConfigError
from tune.models.llama2 import llama2
from tune.modules import TransformerDecoder
from tune.modules.peft import (
    LoRAConfig,
    adapter_parameters,
    add_token_rows,
    apply_lora,
    has_token_rows,
    merge_adapters,
    reset_adapters,
)

IDS = (5, 11, 60)
TOKENS = torch.tensor([[5, 60, 7, 5, 11], [0, 1, 60, 3, 2]])


def decoder(tied: bool) -> TransformerDecoder:
    torch.manual_seed(3)
    return llama2(61, 2, 4, 24, 64, num_kv_heads=2, intermediate_dim=40, tie_word_embeddings=tied)


def with_rows(tied: bool) -> TransformerDecoder:
    model = decoder(tied)
    apply_lora(model, LoRAConfig(rank=3))
    add_token_rows(model, IDS)
    return model


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_rows_are_trained_as_in_a_whole_matrix(tied: bool) -> None:
    model, whole = with_rows(tied), decoder(tied)
    with torch.inference_mode():  # what is kept from here is used in training as well
        assert torch.equal(model(TOKENS), whole(TOKENS))
    torch.manual_seed(4)
    drawn = {}
    for name, owner in (("tok_embeddings", model.tok_embeddings), ("output", model.output)):
        if owner is not None:
            drawn[name] = torch.randn(len(IDS), 24)
            with torch.no_grad():
                owner.token_rows.copy_(drawn[name])
                whole.get_submodule(name).weight[list(IDS)] = drawn[name]
    ours, theirs = model(TOKENS), whole(TOKENS)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for name in drawn:
        wanted = whole.get_submodule(name).weight.grad[list(IDS)]
        torch.testing.assert_close(model.get_submodule(name).token_rows.grad, wanted, rtol=1e-4, atol=1e-4)
        assert model.get_submodule(name).weight.grad is None
    merge_adapters(model)
    assert not has_token_rows(model)
    torch.testing.assert_close(model(TOKENS), theirs, rtol=1e-5, atol=1e-6)


def test_rows_begin_as_the_matrix_and_get_their_own_dtype() -> None:
    model = with_rows(tied=False).to(torch.bfloat16)
    reset_adapters(model, torch.float32)
    rows = [weight for name, weight in adapter_parameters(model).items() if name.endswith("token_rows")]
    assert [weight.dtype for weight in rows] == [torch.float32] * 2
    assert torch.equal(rows[0], model.tok_embeddings.weight[list(IDS)].float())
    assert model(TOKENS).dtype == torch.bfloat16
    add_token_rows(model, [7, 5])
    assert model.tok_embeddings.token_ids == (5, 7, 11, 60)


def test_rows_and_an_adapter_of_the_output_exclude_each_other() -> None:
    model = decoder(tied=False)
    apply_lora(model, LoRAConfig(rank=3, apply_to_output=True))
    with pytest.raises(ConfigError, match="apply_lora_to_output to false"):
        add_token_rows(model, IDS)
