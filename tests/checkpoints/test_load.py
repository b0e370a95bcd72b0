"""From a weight source into a model: everything or nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tune.checkpoints import load_into, open_weights, save_model
from tune.errors import CheckpointError
from tune.models.llama2 import llama2
from tune.modules import TransformerDecoder


def build(**changes: object) -> TransformerDecoder:
    sizes = {"num_layers": 3, "num_heads": 4, "embed_dim": 24, "num_kv_heads": 2, "intermediate_dim": 20}
    return llama2(**{"vocab_size": 29, "max_seq_len": 33, **sizes, **changes})


@pytest.fixture
def weights(tmp_path: Path) -> dict[str, Tensor]:
    save_model(build(), tmp_path / "model")
    return load_file(tmp_path / "model" / "model.safetensors")


def load(weights: dict[str, Tensor], tmp_path: Path, model: TransformerDecoder) -> TransformerDecoder:
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "x.safetensors")
    load_into(model, open_weights(tmp_path / "x.safetensors"))
    return model


def test_every_misfit_is_in_one_error_and_nothing_is_loaded(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]
    for layer in range(3):
        name = f"model.layers.{layer}.self_attn.q_proj.weight"
        weights[name] = weights[name][:13]
        weights[f"model.layers.{layer}.self_attn.q_proj.bias"] = torch.zeros(24)
    weights["lm_head.weight"] = weights["lm_head.weight"].to(torch.float8_e4m3fn)
    weights["score.weight"] = torch.zeros(2, 3)
    model = build()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with pytest.raises(CheckpointError) as caught:
        load(weights, tmp_path, model)
    text = str(caught.value)
    assert (
        "missing from the checkpoint (1):\n    model.layers.1.mlp.up_proj.weight: the model needs [20, 24]"
        in text
    )
    assert "model.layers.{0-2}.self_attn.q_proj.weight: [13, 24] in the file, [24, 24] in the model" in text
    assert "unknown to the model (4):" in text
    assert "model.layers.{0-2}.self_attn.q_proj.bias: [24] in the file" in text
    assert "score.weight: [2, 3] in the file" in text
    assert "lm_head.weight: stored as F8_E4M3" in text
    assert "nothing was loaded" in text
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


def test_stored_rotary_frequencies_are_left_aside(weights: dict[str, Tensor], tmp_path: Path) -> None:
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(3)
    load(weights, tmp_path, build())


def test_another_family_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no weights of the llama family: .*transformer\.wte"):
        load({"transformer.wte.weight": torch.zeros(2, 3)}, tmp_path, build())


def test_a_model_without_a_family_is_told_so(weights: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="without a family"):
        load(weights, tmp_path, TransformerDecoder(build().config))


def test_a_tied_model_takes_one_matrix_or_two_equal_ones(weights: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="other values"):
        load(weights, tmp_path, build(tie_word_embeddings=True))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    load(weights, tmp_path, build(tie_word_embeddings=True))
    del weights["lm_head.weight"]
    model = load(weights, tmp_path, build(tie_word_embeddings=True))
    assert model.output_weight is model.tok_embeddings.weight
    with pytest.raises(CheckpointError, match="set tie_word_embeddings"):
        load(weights, tmp_path, build())


def test_meta_parameters_get_the_dtype_and_keep_what_was_frozen(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    with torch.device("meta"):
        model = build()
    model.norm.requires_grad_(False)
    save_file(weights, tmp_path / "x.safetensors")
    load_into(model, open_weights(tmp_path / "x.safetensors"), dtype=torch.bfloat16)
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.bfloat16, "cpu")}
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["norm.scale"]
    expected = weights["model.layers.2.mlp.down_proj.weight"].to(torch.bfloat16)
    assert torch.equal(model.layers[2].mlp.w2.weight, expected)


def test_an_existing_model_is_filled_in_place_in_its_own_dtype(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    model = build().to(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    load({name: tensor.half() for name, tensor in weights.items()}, tmp_path, model)
    held = optimizer.param_groups[0]["params"][0]
    assert held is model.tok_embeddings.weight
    assert held.dtype == torch.bfloat16
    assert torch.equal(held, weights["model.embed_tokens.weight"].half().bfloat16())


def test_wrapped_blocks_are_still_known_by_their_names(weights: dict[str, Tensor], tmp_path: Path) -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = build()
    model.layers[1] = checkpoint_wrapper(model.layers[1])
    model.layers[2] = torch.compile(model.layers[2])
    load(weights, tmp_path, model)
    save_model(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
