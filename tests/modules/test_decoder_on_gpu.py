"""The same numbers on a GPU as on the CPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tune.data import block_causal_mask
from tune.generation import stream_batch
from tune.modules import ClampedSwiGLU, DecoderConfig, LongRopeScaling, MoEConfig, TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.training import checkpoint_activations, compile_blocks, prefer_attention_kernels

pytestmark = pytest.mark.gpu


PLAIN = DecoderConfig(131, 3, 6, 2, 96, 16, 112, 64)
SCALING = LongRopeScaling((1.0, 1.1, 1.2, 1.3, 1.4, 1.5), (1.5, 2.0, 2.5, 3.0, 3.5, 4.0), 12, magnitude=1.1)
TRAITS = {
    "plain": PLAIN,
    "windows": replace(PLAIN, sliding_window=7, sliding_layers=(0, 2), local_rope_base=300.0, qk_norm="head"),
    "caps": replace(PLAIN, sliding_window=7, sliding_layers=(1,), attn_softcap=2.0, final_softcap=3.0),
    "partial": replace(PLAIN, rotary_dim=12, rope_scaling=SCALING, norm_placement="post", qk_norm="width"),
    "experts": replace(PLAIN, moe=MoEConfig(7, 3, 40, dense_layers=(1,)), norm_placement="both"),
    "sinks": replace(
        PLAIN,
        attn_bias="all",
        attn_sinks=True,
        sliding_window=7,
        sliding_layers=(0, 2),
        moe=MoEConfig(7, 3, 40, bias=True, clamped=ClampedSwiGLU(limit=0.4)),
    ),
}


@pytest.fixture(params=TRAITS)
def pair(request: pytest.FixtureRequest) -> tuple[TransformerDecoder, TransformerDecoder]:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    models = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(3)
        model = TransformerDecoder(TRAITS[request.param])
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
        models.append(model.to(device))
    return models[0], models[1]


def test_loss_and_gradients(pair: tuple[TransformerDecoder, TransformerDecoder]) -> None:
    tokens, labels = torch.randint(0, 131, (3, 37)), torch.randint(0, 131, (3, 37))
    labels[1, 20:] = -100
    for model in pair:
        device = model.output_weight.device
        loss_sum(LinearCrossEntropyLoss(), model, tokens.to(device), labels.to(device)).backward()
    for ours, theirs in zip(*(model.parameters() for model in pair)):
        torch.testing.assert_close(ours.grad, theirs.grad.cpu(), rtol=1e-3, atol=1e-3)


def test_recorded_steps_write_the_same(
    pair: tuple[TransformerDecoder, TransformerDecoder], caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [[5], [3, 88, 0, 17, 17], [60, 61, 62]]
    ours, theirs = (
        [list(row) for row in stream_batch(model.eval(), prompts * 2, max_new_tokens=29, batch_size=3)]
        for model in pair
    )
    assert ours == theirs
    assert not caplog.records  # that no step was recorded


def test_decoding_with_caches(pair: tuple[TransformerDecoder, TransformerDecoder]) -> None:
    tokens = torch.randint(0, 131, (3, 9))
    with torch.no_grad():
        expected = pair[0](tokens)
        pair[1].setup_caches(3, 9)
        out = torch.cat([pair[1](piece.cuda()) for piece in tokens.split((5, 1, 1, 2), 1)], 1)
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_masked_grouped_heads_never_form_the_score_matrix(
    pair: tuple[TransformerDecoder, TransformerDecoder],
) -> None:
    if pair[0].config.attn_softcap is not None or pair[0].config.attn_sinks:
        pytest.skip("no kernel bounds its scores or knows sinks")
    tokens = torch.randint(0, 131, (3, 37))
    mask = block_causal_mask(torch.arange(37).remainder(11)[None].expand(3, -1))
    with torch.no_grad():
        expected = pair[0](tokens, mask=mask)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]):
        out = pair[1](tokens.cuda(), mask=mask.cuda())
        out.sum().backward()
    torch.testing.assert_close(out.cpu(), expected, rtol=1e-3, atol=1e-3)


def test_half_precision_loss_is_near(pair: tuple[TransformerDecoder, TransformerDecoder]) -> None:
    tokens, labels = torch.randint(0, 131, (3, 37)), torch.randint(0, 131, (3, 37))
    with torch.no_grad():
        exact = loss_sum(LinearCrossEntropyLoss(), pair[0], tokens, labels)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype):
            loss = loss_sum(LinearCrossEntropyLoss(), pair[1], tokens.cuda(), labels.cuda())
        loss.backward()
        assert loss.item() == pytest.approx(exact.item(), rel=0.01)


@pytest.mark.parametrize("compiled", [False, True])
def test_packed_documents(pair: tuple[TransformerDecoder, TransformerDecoder], compiled: bool) -> None:
    """Longer than FlexAttention's blocks, in rows that end within one, recomputed; the second batch as the first."""
    checkpoint_activations(pair[1].layers)
    if compiled:
        compile_blocks(pair[1].layers)
    for document in (11, 150):
        tokens, labels = torch.randint(0, 131, (3, 300)), torch.randint(0, 131, (3, 300))
        positions = torch.arange(300).remainder(document).repeat(3, 1)
        positions[1] = torch.arange(300)
        for model in pair:
            device = model.output_weight.device
            model.zero_grad()
            batch = (tokens.to(device), labels.to(device), None, positions.to(device))
            loss_sum(LinearCrossEntropyLoss(), model, *batch).backward()
        for ours, theirs in zip(*(model.parameters() for model in pair)):
            torch.testing.assert_close(ours.grad, theirs.grad.cpu(), rtol=1e-3, atol=1e-3)


def test_packed_gradients_repeat(pair: tuple[TransformerDecoder, TransformerDecoder]) -> None:
    model, grads = pair[1], []
    tokens = torch.randint(0, 131, (3, 300), device="cuda")
    positions = torch.arange(300, device="cuda").remainder(70).expand(3, -1)
    for _ in range(4):
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            hidden = model.hidden(tokens, input_pos=positions)
        hidden.float().square().mean().backward()
        grads.append([layer.attn.q_proj.weight.grad.clone() for layer in model.layers])
    assert all(torch.equal(*other) for later in grads[1:] for other in zip(grads[0], later, strict=True))


def test_a_given_mask_in_half_precision_of_an_odd_length(
    pair: tuple[TransformerDecoder, TransformerDecoder],
) -> None:
    tokens = torch.randint(0, 131, (3, 37))
    mask = block_causal_mask(torch.arange(37).remainder(11)[None].expand(3, -1))
    with torch.no_grad():
        expected = pair[0](tokens, mask=mask)
    with torch.autocast("cuda", torch.bfloat16):
        out = pair[1](tokens.cuda(), mask=mask.cuda())
    out.sum().backward()
    torch.testing.assert_close(out.float().cpu(), expected, rtol=0.1, atol=0.1)


def test_the_preferred_kernels_change_no_loss(pair: tuple[TransformerDecoder, TransformerDecoder]) -> None:
    tokens, labels = (torch.randint(0, 131, (3, 128), device="cuda") for _ in range(2))
    losses = []
    for device in (torch.device("cpu"), torch.device("cuda")):  # for a CPU nothing is preferred
        prefer_attention_kernels(device)
        with torch.autocast("cuda", torch.bfloat16):
            loss = loss_sum(LinearCrossEntropyLoss(), pair[1], tokens, labels)
        loss.backward()
        losses.append(loss.item())
    prefer_attention_kernels(torch.device("cpu"))
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
