"""What is Llama's own, beside what test_families proves of it: other masks, other files, sizes by argument."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from cases import SIZES
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import tune.models
from tune.checkpoints import load_into, open_weights
from tune.models.llama2 import LLAMA, llama2
from tune.modules import TransformerDecoder

VARIANTS = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "one-key-head": {"num_key_value_heads": 1},
    "every-key-head": {"num_key_value_heads": 6},
}


class Pair(NamedTuple):
    """The reference, our model with its weights, and the directory between them."""

    reference: LlamaForCausalLM
    ours: TransformerDecoder
    directory: Path


@pytest.fixture(params=VARIANTS, scope="module")
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.manual_seed(5)
    reference = LlamaForCausalLM(LlamaConfig(**SIZES | VARIANTS[request.param])).eval()
    with torch.no_grad():
        for parameter in reference.parameters():  # norms that are not one, logits that are not flat
            parameter.add_(torch.randn_like(parameter) * 0.2)
    directory = tmp_path_factory.mktemp("reference")
    reference.save_pretrained(directory)
    return Pair(reference, tune.models.from_checkpoint(directory), directory)


def tokens_of(b: int, s: int) -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (b, s), generator=torch.Generator().manual_seed(b * s))


def test_positions_and_mask_equal_the_reference(pair: Pair) -> None:
    b, s = 2, 11
    tokens = tokens_of(b, s)
    # Far beyond max_position_embeddings, and different in each row.
    positions = torch.arange(s)[None] + torch.tensor([[7], [3000]])
    mask = (torch.rand(b, s, s, generator=torch.Generator().manual_seed(2)) < 0.5) | torch.eye(s).bool()
    mask &= torch.ones(s, s).tril().bool()
    additive = torch.zeros(b, 1, s, s).masked_fill(~mask[:, None], torch.finfo(torch.float32).min)
    with torch.no_grad():
        ours = pair.ours(tokens, mask=mask, input_pos=positions)
        theirs = pair.reference(tokens, attention_mask=additive, position_ids=positions).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
def test_weights_the_reference_sharded_or_pickled_load(
    pair: Pair, tmp_path: Path, max_shard_size: str
) -> None:
    reference, model, directory = pair
    reference.save_pretrained(tmp_path / "safe", max_shard_size=max_shard_size)
    loaded = {"safe": tune.models.from_checkpoint(tmp_path / "safe")}
    state = {name: value for name, value in reference.state_dict().items() if name != "lm_head.weight"}
    if not model.config.tie_word_embeddings:
        state["lm_head.weight"] = reference.lm_head.weight.detach()
    (tmp_path / "pickle").mkdir()
    (tmp_path / "pickle" / "config.json").write_text((directory / "config.json").read_text())
    if max_shard_size == "1GB":
        torch.save(state, tmp_path / "pickle" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        names = list(state)
        parts = {"pytorch_model-00001-of-00002.bin": names[:5], "pytorch_model-00002-of-00002.bin": names[5:]}
        for file, part in parts.items():
            torch.save({name: state[name] for name in part}, tmp_path / "pickle" / file)
        index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
        (tmp_path / "pickle" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    loaded["pickle"] = tune.models.from_checkpoint(tmp_path / "pickle")
    for name, parameter in model.named_parameters():
        for kind, other in loaded.items():
            assert torch.equal(other.get_parameter(name), parameter), (kind, name)


def test_bf16_stays_near_fp32_and_converts_the_file(pair: Pair) -> None:
    half = tune.models.from_checkpoint(pair.directory, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    tokens = tokens_of(2, 9)
    with torch.no_grad():
        wide = pair.ours(tokens)
        assert (half(tokens).float() - wide).norm() / wide.norm() < 0.03


def test_sizes_by_argument_follow_the_published_rule() -> None:
    with torch.device("meta"):
        model = llama2(vocab_size=32_000, num_layers=1, num_heads=32, embed_dim=4096, max_seq_len=4096)
    assert model.config.intermediate_dim == 11_008
    assert model.config.num_kv_heads == 32


def test_a_meta_build_can_be_filled_and_computes_the_same(pair: Pair) -> None:
    with torch.device("meta"):
        hollow = TransformerDecoder(pair.ours.config, LLAMA)
    assert all(parameter.is_meta for parameter in hollow.parameters())
    hollow.to_empty(device="cpu")
    hollow.reset_parameters()
    tokens = tokens_of(2, 7)
    hollow(tokens)  # forms what is formed at first use, before the weights come
    load_into(hollow, open_weights(pair.directory))
    assert torch.equal(hollow(tokens), pair.ours(tokens))


def test_in_torchtunes_files_biases_are_turned_as_their_matrices(tmp_path: Path) -> None:
    config = replace(llama2(11, 1, 2, 12, 5, num_kv_heads=1, intermediate_dim=7).config, attn_bias="all")
    model = TransformerDecoder(config, LLAMA)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    neighbours = [0, 3, 1, 4, 2, 5]  # of a head of six: a channel, then the one that turns with it
    for name, num_heads in (("q_proj", 2), ("k_proj", 1)):
        rows = torch.cat([torch.tensor(neighbours) + 6 * head for head in range(num_heads)])
        for kind in ("weight", "bias"):
            place = f"layers.0.attn.{name}.{kind}"
            weights[place] = torch.randn_like(weights[place])
            model.get_parameter(place).data = weights[place].clone()
            weights[place] = weights[place][rows]
    torch.save(weights, tmp_path / "torchtune_model_0.pt")
    other = TransformerDecoder(config, LLAMA)
    load_into(other, open_weights([tmp_path / "torchtune_model_0.pt"]))
    for name, parameter in model.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name
