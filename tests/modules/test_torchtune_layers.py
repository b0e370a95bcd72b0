"""torchtune's layers: its arguments, and the numbers of plain formulas."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tune import modules
from tune.errors import ConfigError, GenerationError
from tune.models.llama2 import llama2
from tune.modules.attention import SelfAttention
from tune.modules.block import DecoderBlock
from tune.modules.torchtune_layers import (
    MultiHeadAttention,
    RotaryPositionalEmbeddings,
    TransformerSelfAttentionLayer,
    create_block_causal_mask,
    local_kv_cache,
)

B, S, D, NUM_HEADS, NUM_KV, HEAD_DIM = 2, 7, 36, 6, 3, 8


@pytest.fixture
def model() -> modules.TransformerDecoder:
    torch.manual_seed(0)
    return llama2(
        vocab_size=29,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        embed_dim=24,
        intermediate_dim=40,
        max_seq_len=19,
    ).eval()


def build_attention(**arguments) -> MultiHeadAttention:
    torch.manual_seed(1)
    return MultiHeadAttention(
        embed_dim=D,
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV,
        head_dim=HEAD_DIM,
        q_proj=nn.Linear(D, NUM_HEADS * HEAD_DIM),
        k_proj=nn.Linear(D, NUM_KV * HEAD_DIM),
        v_proj=nn.Linear(D, NUM_KV * HEAD_DIM),
        output_proj=nn.Linear(NUM_HEADS * HEAD_DIM, D),
        **arguments,
    )


def turn(x: torch.Tensor, positions: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions as complex numbers of neighbouring channels."""
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    frequencies = base ** -(torch.arange(0, x.shape[-1], 2) / x.shape[-1])
    angles = positions[..., None] * frequencies  # [b, s, h_d / 2]
    turned = pairs * torch.polar(torch.ones_like(angles), angles)[:, :, None]
    return torch.view_as_real(turned).flatten(-2)


def attend(
    attn: MultiHeadAttention, x: torch.Tensor, mask: torch.Tensor, positions, normed: bool
) -> torch.Tensor:
    """Attention by its formula, the heads of keys repeated by hand."""
    q, k, v = (proj(x).view(B, S, -1, HEAD_DIM) for proj in (attn.q_proj, attn.k_proj, attn.v_proj))
    q, k = turn(q, positions, 500.0), turn(k, positions, 500.0)
    if normed:
        q, k = (F.rms_norm(heads, (HEAD_DIM,)) for heads in (q, k))
    k, v = (heads.repeat_interleave(NUM_HEADS // NUM_KV, 2) for heads in (k, v))
    scores = torch.einsum("bsnh,btnh->bnst", q, k) / HEAD_DIM**0.5
    weights = scores.masked_fill(~mask[:, None], float("-inf")).softmax(-1)
    return attn.output_proj(torch.einsum("bnst,btnh->bsnh", weights, v).flatten(2))


def test_rotary_positions_turn_neighbouring_channels() -> None:
    x, positions = torch.randn(B, S, NUM_HEADS, HEAD_DIM), torch.randint(0, 40, (B, S))
    rope = modules.RotaryPositionalEmbeddings(dim=HEAD_DIM, max_seq_len=10, base=500)
    torch.testing.assert_close(rope(x, input_pos=positions), turn(x, positions, 500.0))
    torch.testing.assert_close(rope(x), turn(x, torch.arange(S)[None], 500.0))
    torch.testing.assert_close(rope(x, input_pos=positions[1]), turn(x, positions[1:], 500.0))
    assert rope(x.bfloat16()).dtype == torch.bfloat16
    assert not rope.state_dict()


@pytest.mark.parametrize("normed", [False, True])
def test_attention_is_what_its_formula_says(normed: bool) -> None:
    norms = {"q_norm": nn.RMSNorm(HEAD_DIM), "k_norm": nn.RMSNorm(HEAD_DIM)} if normed else {}
    attn = build_attention(pos_embeddings=RotaryPositionalEmbeddings(HEAD_DIM, base=500), **norms)
    x, positions = torch.randn(B, S, D), torch.randint(0, 99, (B, S))
    causal = torch.ones(B, S, S, dtype=torch.bool).tril()
    blocks = create_block_causal_mask([torch.tensor([3, 4]), torch.tensor([1, 2, 4])])
    for given, mask in ((None, causal), (blocks, blocks)):
        expected = attend(attn, x, mask, positions, normed)
        torch.testing.assert_close(attn(x, x, mask=given, input_pos=positions), expected)


def test_without_a_mask_all_may_be_seen() -> None:
    attn = build_attention(pos_embeddings=RotaryPositionalEmbeddings(HEAD_DIM, base=500), is_causal=False)
    x, positions = torch.randn(B, S, D), torch.arange(S).expand(B, S)
    everything = torch.ones(B, S, S, dtype=torch.bool)
    torch.testing.assert_close(attn(x, x), attend(attn, x, everything, positions, False))
    assert attn(x, torch.randn(B, 5, D), mask=torch.ones(B, S, 5, dtype=torch.bool)).shape == (B, S, D)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"q_norm": nn.Identity()}, "k_norm"),
        ({"attn_dropout": 1.5}, "attn_dropout"),
        ({"kv_cache": object()}, "local_kv_cache"),
    ],
)
def test_attention_refuses_what_it_cannot_do(arguments: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        build_attention(**arguments)
    with pytest.raises(ConfigError, match="give y"):
        build_attention()(torch.randn(B, S, D))


def test_a_layer_adds_attention_then_feed_forward() -> None:
    attn, mlp, scale = build_attention(), nn.Linear(D, D), nn.Linear(D, D)
    norms = modules.RMSNorm(D), modules.RMSNorm(D, eps=1e-5)
    layer = modules.TransformerSelfAttentionLayer(
        attn, mlp, sa_norm=norms[0], mlp_norm=norms[1], mlp_scale=scale
    )
    x = torch.randn(B, S, D)
    normed = F.rms_norm(x, (D,), eps=1e-6)
    between = x + attn(normed, normed)
    torch.testing.assert_close(layer(x), between + scale(mlp(F.rms_norm(between, (D,), eps=1e-5))))
    assert {name.split(".")[0] for name in layer.state_dict()} == {
        "attn",
        "mlp",
        "sa_norm",
        "mlp_norm",
        "mlp_scale",
    }


def test_the_decoders_own_parts_count_as_torchtunes(model) -> None:
    class Mine(TransformerSelfAttentionLayer):
        pass

    block = model.layers[0]
    assert isinstance(block, TransformerSelfAttentionLayer)
    assert isinstance(block.attn, MultiHeadAttention)
    assert not isinstance(block, Mine)
    assert not isinstance(block.mlp, MultiHeadAttention | TransformerSelfAttentionLayer)
    assert isinstance(Mine(build_attention(), nn.Identity()), Mine)
    assert not isinstance(build_attention(), SelfAttention | DecoderBlock)


def test_block_masks_keep_documents_apart() -> None:
    (mask,) = modules.packed_block_causal_mask([torch.tensor([2, 1, 3])])
    expected = torch.block_diag(*(torch.ones(n, n).tril() for n in (2, 1, 3))).bool()
    assert torch.equal(mask, expected)


@torch.no_grad()
def test_local_caches_come_and_go(model) -> None:
    tokens = torch.randint(0, 29, (B, S))
    whole = model(tokens)
    with local_kv_cache(
        model, batch_size=B, device=torch.device("cpu"), dtype=torch.float32, decoder_max_seq_len=S
    ):
        mask = torch.ones(B, S, S, dtype=torch.bool).tril()
        first = model(tokens[:, :4], mask=mask[:, :4], input_pos=torch.arange(4)[None])
        last = model(tokens[:, 4:], mask=mask[:, 4:], input_pos=torch.arange(4, S)[None])
        torch.testing.assert_close(torch.cat((first, last), 1), whole)
        with (
            pytest.raises(GenerationError, match="already"),
            local_kv_cache(model, batch_size=B, device=torch.device("cpu"), dtype=torch.float32),
        ):
            pass
    assert not model.caches_are_enabled()
