"""The decoder's own promises: masks, positions, precision, initial values, sizes."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn

from tune.errors import ConfigError, TrainingError
from tune.modules import DecoderConfig, RMSNorm, RotaryEmbedding, TransformerDecoder, apply_rotary

CONFIG = DecoderConfig(
    vocab_size=31,
    num_layers=3,
    num_heads=6,
    num_kv_heads=2,
    embed_dim=20,
    head_dim=8,
    intermediate_dim=27,
    max_seq_len=64,
)


def build(**changes: Any) -> TransformerDecoder:
    torch.manual_seed(4)
    model = TransformerDecoder(DecoderConfig(**{**vars(CONFIG), **changes}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.eval()


def test_parts_keep_torchtunes_names() -> None:
    names = set(dict(build().named_parameters()))
    block = {"attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.output_proj", "mlp.w1", "mlp.w2", "mlp.w3"}
    expected = {f"layers.{i}.{part}.weight" for i in range(3) for part in block}
    expected |= {f"layers.{i}.{part}.scale" for i in range(3) for part in ("sa_norm", "mlp_norm")}
    assert names == expected | {"tok_embeddings.weight", "norm.scale", "output.weight"}
    assert set(build().state_dict()) == names
    assert set(dict(build(tie_word_embeddings=True).named_parameters())) == names - {"output.weight"}


def test_hidden_and_unembed_are_the_forward_pass_in_two_steps() -> None:
    for model in (build(), build(tie_word_embeddings=True)):
        tokens = torch.randint(0, 31, (2, 5))
        hidden = model.hidden(tokens)
        assert hidden.shape == (2, 5, 20)
        assert torch.equal(model.unembed(hidden), model(tokens))
        torch.testing.assert_close(hidden @ model.output_weight.T, model(tokens))


def test_packed_documents_do_not_see_each_other() -> None:
    model = build()
    lengths = (4, 7, 2)
    documents = [torch.randint(0, 31, (1, length)) for length in lengths]
    owner = torch.repeat_interleave(torch.arange(3), torch.tensor(lengths))
    mask = (owner[:, None] == owner) & torch.ones(13, 13).tril().bool()
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = model(torch.cat(documents, 1), mask=mask[None], input_pos=positions)
    alone = torch.cat([model(document) for document in documents], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-5, atol=1e-5)


def test_an_explicit_causal_mask_changes_nothing() -> None:
    model, tokens = build(), torch.randint(0, 31, (3, 9))
    mask = torch.ones(9, 9).tril().bool().expand(3, 9, 9)
    torch.testing.assert_close(model(tokens, mask=mask), model(tokens), rtol=1e-5, atol=1e-5)


def test_a_query_that_sees_nothing_and_its_gradients_are_finite() -> None:
    model, tokens = build(), torch.randint(0, 31, (2, 6))
    mask = torch.ones(6, 6).tril().bool().repeat(2, 1, 1)
    mask[1, 4:] = False
    model(tokens, mask=mask).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@pytest.mark.parametrize(
    "mask",
    [torch.ones(2, 6, 6), torch.ones(6, 6).bool(), torch.ones(2, 6, 5).bool(), torch.ones(2, 1, 6, 6).bool()],
)
def test_masks_of_another_kind_are_refused(mask: torch.Tensor) -> None:
    with pytest.raises(TrainingError, match="mask"):
        build()(torch.randint(0, 31, (2, 6)), mask=mask)


def test_later_tokens_change_nothing_before_them() -> None:
    model, tokens = build(), torch.randint(0, 31, (1, 9))
    other = tokens.clone()
    other[0, 5:] = (other[0, 5:] + 1) % 31
    assert torch.equal(model(tokens)[:, :5], model(other)[:, :5])


def test_only_distances_between_positions_matter() -> None:
    model, tokens = build(), torch.randint(0, 31, (2, 7))
    shifted = model(tokens, input_pos=torch.arange(7)[None] + 1000)
    torch.testing.assert_close(shifted, model(tokens), rtol=1e-3, atol=1e-3)


def test_dropout_acts_in_training_alone() -> None:
    model, tokens = build(attn_dropout=0.5), torch.randint(0, 31, (2, 7))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_angles_keep_fp32_in_a_bf16_model_on_any_path_there() -> None:
    positions = torch.tensor([[1_000_003]])
    reference = RotaryEmbedding(8, 1e4)(positions)
    with torch.device("meta"):
        hollow = TransformerDecoder(CONFIG)
    models = [build().to(torch.bfloat16), copy.deepcopy(build()).half(), hollow.to_empty(device="cpu")]
    for model in models:
        for ours, theirs in zip(model.rope(positions), reference):
            assert ours.dtype == torch.float32
            assert torch.equal(ours, theirs)
    exact = math.cos(1_000_003 * 1e4 ** (-6 / 8))
    assert abs(reference[0][0, 0, 0, 3].item() - exact) < 1e-4


def test_rounded_angles_are_refused() -> None:
    cos, sin = (angle.bfloat16() for angle in RotaryEmbedding(8, 1e4)(torch.arange(3)[None]))
    with pytest.raises(TrainingError, match="cast_forward_inputs=False"):
        apply_rotary(torch.zeros(1, 3, 2, 8), cos, sin)


def test_frequencies_formed_in_inference_mode_serve_training() -> None:
    model, tokens = build(), torch.randint(0, 31, (2, 5))
    with torch.inference_mode():
        model(tokens)
    model(tokens).sum().backward()


# Under autocast scales stay fp32; torch would warn of two dtypes, and leave its one kernel.
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kept_in", [torch.bfloat16, torch.float32])
def test_a_norm_of_bf16_values_is_formed_in_fp32(kept_in: torch.dtype) -> None:
    norm = RMSNorm(64, 1e-5).to(kept_in)
    nn.init.normal_(norm.scale)
    x = (torch.randn(3, 64) * 300).bfloat16()
    wide = x.double()
    exact = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.scale.double()
    assert norm(x).dtype == torch.bfloat16
    assert torch.equal(norm(x), exact.bfloat16())


def test_blocks_compile_without_breaks_and_give_the_same() -> None:
    torch._dynamo.reset()
    model = build()
    lengths = (5, 9, 1, 7)  # from the second on the compiler lets the length vary
    expected = [model(torch.arange(2 * length).view(2, length) % 31) for length in lengths]
    for layer in model.layers:
        layer.compile(backend="eager", fullgraph=True)
    for length, logits in zip(lengths, expected, strict=True):
        torch.testing.assert_close(model(torch.arange(2 * length).view(2, length) % 31), logits)


def test_initial_values_have_their_std_and_a_flat_first_loss() -> None:
    torch.manual_seed(1)
    config = DecoderConfig(997, 8, 4, 4, 128, 32, 256, 64)
    with torch.device("meta"):
        model = TransformerDecoder(config)
    model.to_empty(device="cpu").reset_parameters()
    for name, parameter in model.named_parameters():
        if name.endswith("scale"):
            assert torch.equal(parameter, torch.ones_like(parameter))
            continue
        is_residual = name.endswith(("output_proj.weight", "w2.weight"))
        expected = 0.02 / 4 if is_residual else 0.02  # the root of twice 8 layers
        assert parameter.std().item() == pytest.approx(expected, rel=0.03), name
        assert abs(parameter.mean().item()) < 5 * expected / parameter.numel() ** 0.5, name
    tokens = torch.randint(0, 997, (4, 33))
    loss = nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(997), abs=0.1)


def test_a_build_is_repeatable_and_starts_initialised() -> None:
    torch.manual_seed(8)
    first = TransformerDecoder(CONFIG)
    torch.manual_seed(8)
    second = TransformerDecoder(CONFIG)
    for ours, theirs in zip(first.parameters(), second.parameters()):
        assert torch.equal(ours, theirs)
    assert first.tok_embeddings.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_builds_follow_the_default_dtype() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        model = TransformerDecoder(CONFIG)
    finally:
        torch.set_default_dtype(torch.float32)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


@pytest.mark.parametrize("is_tied", [False, True])
def test_parameters_are_counted_from_the_sizes(is_tied: bool) -> None:
    model = build(tie_word_embeddings=is_tied)
    assert model.config.num_parameters() == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_heads": 5}, "num_heads is 5, not a multiple of num_kv_heads 2"),
        ({"head_dim": 7}, "head_dim is 7"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"num_layers": -1}, "num_layers is -1"),
        ({"num_kv_heads": 0}, "num_kv_heads is 0"),
        ({"norm_eps": math.nan}, "norm_eps is nan"),
        ({"rope_base": math.inf}, "rope_base is inf"),
        ({"attn_dropout": 1.0}, "attn_dropout is 1.0"),
        ({"vocab_size": 0, "head_dim": 3, "norm_eps": -1.0}, "head_dim is 3"),
    ],
)
def test_sizes_that_no_decoder_has_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DecoderConfig(**{**vars(CONFIG), **changes})
