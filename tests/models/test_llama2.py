"""Llama against transformers' implementation, on small random weights of awkward shapes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

import tune.models
from tune.checkpoints import load_into, open_weights, save_model
from tune.models.llama2 import llama2, llama2_7b, llama2_13b, llama2_70b
from tune.models.llama2.family import LLAMA
from tune.modules import TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum

# Vocabulary, width, feed-forward, layers, heads, key heads: all different, the vocabulary odd.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 50,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 40,
    "rms_norm_eps": 1e-4,
    "rope_theta": 500.0,
}
VARIANTS = {
    "grouped": {},
    "tied": {"tie_word_embeddings": True},
    "one-key-head": {"num_key_value_heads": 1},
    "every-key-head": {"num_key_value_heads": 6},
    "wide-heads": {"head_dim": 14},
}


@pytest.fixture(params=VARIANTS, scope="module")
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LlamaForCausalLM, TransformerDecoder, Path]:
    """The reference, our model with its weights, and the directory between them."""
    torch.manual_seed(5)
    reference = LlamaForCausalLM(LlamaConfig(**SIZES | VARIANTS[request.param])).eval()
    with torch.no_grad():
        for parameter in reference.parameters():  # norms that are not one, logits that are not flat
            parameter.add_(torch.randn_like(parameter) * 0.2)
    directory = tmp_path_factory.mktemp("reference")
    reference.save_pretrained(directory)
    return reference, tune.models.from_checkpoint(directory), directory


def tokens_of(b: int, s: int) -> Tensor:
    return torch.randint(0, SIZES["vocab_size"], (b, s), generator=torch.Generator().manual_seed(b * s))


def reference_grads(reference: LlamaForCausalLM, model: TransformerDecoder) -> dict[str, Tensor | None]:
    grads = {name: parameter.grad for name, parameter in reference.named_parameters()}
    names = dict(model.named_parameters())
    return {rule.ours: grads[rule.theirs] for (rule,) in LLAMA.hf.expand(model.config, names)}


def test_logits_equal_the_reference(pair: tuple[LlamaForCausalLM, TransformerDecoder, Path]) -> None:
    reference, model, _ = pair
    tokens = tokens_of(3, 17)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), reference(tokens).logits, rtol=1e-5, atol=1e-5)


def test_all_gradients_equal_the_reference(
    pair: tuple[LlamaForCausalLM, TransformerDecoder, Path],
) -> None:
    reference, model, _ = pair
    tokens, labels = tokens_of(3, 17), tokens_of(3, 17).roll(-1, 1)
    labels[1, 9:] = -100  # a row padded on the right
    reference.zero_grad()
    model.zero_grad()
    logits = reference(tokens).logits.flatten(0, 1)
    F.cross_entropy(logits, labels.flatten(), reduction="sum").backward()
    loss_sum(LinearCrossEntropyLoss(), model, tokens, labels).backward()
    expected = reference_grads(reference, model)
    assert set(expected) == {name for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=2e-5, msg=name)


def test_right_padding_needs_no_mask(pair: tuple[LlamaForCausalLM, TransformerDecoder, Path]) -> None:
    reference, model, _ = pair
    tokens, lengths = tokens_of(3, 13), (13, 4, 9)
    kept = torch.arange(13) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        ours = model(tokens.where(kept, 0))
        theirs = reference(tokens, attention_mask=kept.long()).logits
    torch.testing.assert_close(ours[kept], theirs[kept], rtol=1e-5, atol=1e-5)


def test_positions_and_mask_equal_the_reference(
    pair: tuple[LlamaForCausalLM, TransformerDecoder, Path],
) -> None:
    reference, model, _ = pair
    b, s = 2, 11
    tokens = tokens_of(b, s)
    # Far beyond max_position_embeddings, and different in each row.
    positions = torch.arange(s)[None] + torch.tensor([[7], [3000]])
    mask = (torch.rand(b, s, s, generator=torch.Generator().manual_seed(2)) < 0.5) | torch.eye(s).bool()
    mask &= torch.ones(s, s).tril().bool()
    additive = torch.zeros(b, 1, s, s).masked_fill(~mask[:, None], torch.finfo(torch.float32).min)
    with torch.no_grad():
        ours = model(tokens, mask=mask, input_pos=positions)
        theirs = reference(tokens, attention_mask=additive, position_ids=positions).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("max_shard_bytes", [2**30, 15_000])
def test_a_saved_model_is_the_reference_again(
    pair: tuple[LlamaForCausalLM, TransformerDecoder, Path], tmp_path: Path, max_shard_bytes: int
) -> None:
    reference, model, _ = pair
    save_model(model, tmp_path, max_shard_bytes=max_shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 2) == (max_shard_bytes < 2**30)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    tokens = tokens_of(2, 12)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, reference(tokens).logits)
        assert torch.equal(tune.models.from_checkpoint(tmp_path)(tokens), model(tokens))
    differing = {
        name
        for name, value in again.config.to_dict().items()
        if reference.config.to_dict().get(name) != value
    }
    assert differing <= {"_name_or_path", "dtype"}


@pytest.mark.parametrize("max_shard_size", ["1GB", "20KB"])
def test_weights_the_reference_sharded_or_pickled_load(
    pair: tuple[LlamaForCausalLM, TransformerDecoder, Path], tmp_path: Path, max_shard_size: str
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


def test_bf16_stays_near_fp32_and_the_file_is_converted_on_the_way(
    pair: tuple[LlamaForCausalLM, TransformerDecoder, Path],
) -> None:
    _, model, directory = pair
    half = tune.models.from_checkpoint(directory, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    tokens = tokens_of(2, 9)
    with torch.no_grad():
        wide = model(tokens)
        assert (half(tokens).float() - wide).norm() / wide.norm() < 0.03


def test_published_sizes_count_what_was_published() -> None:
    with torch.device("meta"):
        models = {"7b": llama2_7b(), "13b": llama2_13b(), "70b": llama2_70b()}
    counts = {"7b": 6_738_415_616, "13b": 13_015_864_320, "70b": 68_976_648_192}
    for size, model in models.items():
        assert sum(parameter.numel() for parameter in model.parameters()) == counts[size]
        assert model.config.num_parameters() == counts[size]


def test_sizes_by_argument_follow_the_published_rule() -> None:
    with torch.device("meta"):
        model = llama2(vocab_size=32_000, num_layers=1, num_heads=32, embed_dim=4096, max_seq_len=4096)
    assert model.config.intermediate_dim == 11_008
    assert model.config.num_kv_heads == 32


def test_a_meta_build_can_be_filled_and_computes_the_same(
    pair: tuple[LlamaForCausalLM, TransformerDecoder, Path],
) -> None:
    _, model, directory = pair
    with torch.device("meta"):
        hollow = TransformerDecoder(model.config, LLAMA)
    assert all(parameter.is_meta for parameter in hollow.parameters())
    hollow.to_empty(device="cpu")
    hollow.reset_parameters()
    tokens = tokens_of(2, 7)
    hollow(tokens)  # forms what is formed at first use, before the weights come
    load_into(hollow, open_weights(directory))
    assert torch.equal(hollow(tokens), model(tokens))
