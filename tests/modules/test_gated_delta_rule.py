"""The gated delta rule by chunks against the recurrence it stands for, token by token, in fp64."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from tune.modules.delta_rule import fla_delta_rule
from tune.modules.document_mask import document_runs
from tune.modules.kernels import gated_delta_rule as kernel
from tune.modules.kernels.document_conv import document_conv
from tune.modules.kernels.gated_delta_rule import gated_delta_rule
from tune.training.memory.live_bytes import LiveBytes

B, NUM_KEY_HEADS, NUM_VALUE_HEADS, KEY_DIM, VALUE_DIM = 2, 3, 6, 5, 7


def inputs_of(s: int, seed: int = 0) -> list[Tensor]:
    """Return q, k, v, log_decay and strength, some heads of which forget within a token."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rates = torch.tensor([0.0, 0.01, 0.1, 1.0, 5.0, 20.0], dtype=torch.float64)
    tensors = [
        normal(B, s, NUM_KEY_HEADS, KEY_DIM),
        normal(B, s, NUM_KEY_HEADS, KEY_DIM),
        normal(B, s, NUM_VALUE_HEADS, VALUE_DIM),
        -rates * normal(B, s, NUM_VALUE_HEADS).abs(),
        normal(B, s, NUM_VALUE_HEADS).sigmoid(),
    ]
    return [tensor.requires_grad_() for tensor in tensors]


def recur(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    strength: Tensor,
    starts: Tensor | None,
    state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The rule as it is written: forget, correct what is stored for this key, read."""
    q, k = (x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k))
    repeats = v.shape[2] // k.shape[2]
    q, k = q.repeat_interleave(repeats, 2) * q.shape[-1] ** -0.5, k.repeat_interleave(repeats, 2)
    if state is None:
        state = torch.zeros(len(q), v.shape[2], q.shape[-1], v.shape[-1], dtype=q.dtype)
    out = []
    for token in range(q.shape[1]):
        if starts is not None:
            state = state * (starts[:, token] != token)[:, None, None, None]
        state = state * log_decay[:, token].exp()[..., None, None]
        stored = (state * k[:, token, :, :, None]).sum(-2)
        change = strength[:, token, :, None] * (v[:, token] - stored)
        state = state + k[:, token, :, :, None] * change[:, :, None]
        out.append((state * q[:, token, :, :, None]).sum(-2))
    return torch.stack(out, 1), state


def starts_of(*rows: tuple[int, ...]) -> Tensor:
    """Return where each token's document begins, for rows of documents of these lengths."""
    starts = []
    for lengths in rows:
        begins = [sum(lengths[:index]) for index in range(len(lengths))]
        starts.append([begin for begin, length in zip(begins, lengths, strict=True) for _ in range(length)])
    return torch.tensor(starts, dtype=torch.int32)


@pytest.mark.parametrize("with_state", [False, True], ids=["fresh", "continued"])
@pytest.mark.parametrize(
    ("s", "documents"),
    [
        (1, None),
        (37, None),
        (64, ((64,), (63, 1))),  # one chunk to the token
        (131, ((1, 1, 61, 1, 64, 3), (65, 66))),  # begins at, before and after chunks' ends
        (200, ((200,), (129, 1, 70))),
    ],
)
def test_chunks_equal_the_recurrence(
    s: int, documents: tuple[tuple[int, ...], ...] | None, with_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "_MAX_CHUNKS", 2)  # 200 tokens are two stretches
    inputs = inputs_of(s)
    starts = None if documents is None else starts_of(*documents)
    state = None
    if with_state:
        state = torch.randn(B, NUM_VALUE_HEADS, KEY_DIM, VALUE_DIM, dtype=torch.float64)
        starts = torch.zeros(B, s, dtype=torch.int32) if starts is None else starts
        starts = torch.where(starts == 0, -3, starts).to(torch.int32)  # the first document began before
    out, after = gated_delta_rule(*inputs, starts, state)
    expected, expected_after = recur(*inputs, starts, state)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(after, expected_after, rtol=1e-12, atol=1e-13)
    grad = torch.randn_like(out)
    found = torch.autograd.grad(out, inputs, grad)
    for mine, theirs in zip(found, torch.autograd.grad(expected, inputs, grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_fp32_loses_no_digits_to_fast_forgetting() -> None:
    exact = inputs_of(131)
    inputs = [tensor.detach().float().requires_grad_() for tensor in exact]
    starts = starts_of((20, 50, 61), (131,))
    grad = torch.randn(B, 131, NUM_VALUE_HEADS, VALUE_DIM)
    found = torch.autograd.grad(gated_delta_rule(*inputs, starts, None)[0], inputs, grad)
    expected = torch.autograd.grad(recur(*exact, starts, None)[0], exact, grad.double())
    for mine, theirs in zip(found, expected, strict=True):
        error = (mine - theirs).flatten(0, -2).norm(dim=0) / theirs.flatten(0, -2).norm(dim=0)
        assert error.max() < 2e-6, error


def test_a_document_is_the_same_wherever_it_stands_in_a_row() -> None:
    """In fp32 and to its last digits: a chunk's sums must not hold what came before the document."""
    lengths = (50, 37, 70)
    inputs = [tensor.detach().float().requires_grad_() for tensor in inputs_of(sum(lengths))]
    grad = torch.randn(B, sum(lengths), NUM_VALUE_HEADS, VALUE_DIM)
    packed = gated_delta_rule(*inputs, starts_of(lengths, lengths), None)[0]
    together = torch.autograd.grad(packed, inputs, grad)
    begin = 0
    for length in lengths:
        own = slice(begin, begin + length)
        alone = [tensor.detach()[:, own].clone().requires_grad_() for tensor in inputs]
        out = gated_delta_rule(*alone, None, None)[0]
        torch.testing.assert_close(packed[:, own], out, rtol=1e-6, atol=1e-6)
        for whole, part in zip(together, torch.autograd.grad(out, alone, grad[:, own]), strict=True):
            torch.testing.assert_close(whole[:, own], part, rtol=1e-6, atol=1e-6 * part.abs().max().item())
        begin += length


def test_half_precision_is_computed_in_fp32_under_autocast() -> None:
    inputs = [tensor.detach().float() for tensor in inputs_of(70)]
    halves = [tensor.bfloat16().requires_grad_() for tensor in inputs]
    wholes = [tensor.detach().float().requires_grad_() for tensor in halves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, state = gated_delta_rule(*halves, None, None)
    expected, expected_state = gated_delta_rule(*wholes, None, None)
    assert out.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert torch.equal(state, expected_state)
    assert torch.equal(out, expected.bfloat16())


def test_the_operator_is_what_torch_expects_of_one() -> None:
    inputs = [tensor.detach().float().requires_grad_() for tensor in inputs_of(9)]
    arguments = (*inputs, starts_of((4, 5), (9,)), None)
    # Compiled blocks are tested as blocks.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(gated_delta_rule, arguments, test_utils=checks)


@pytest.mark.parametrize(("width", "activation"), [(1, "silu"), (2, "none"), (4, "silu"), (3, "none")])
def test_convolution_keeps_to_its_document(width: int, activation: Literal["silu", "none"]) -> None:
    c, lengths = 11, (2, 1, 9, 3)
    generator = torch.Generator().manual_seed(width)
    x = torch.randn(1, sum(lengths), c, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(c, 1, width, dtype=torch.float64, generator=generator, requires_grad=True)
    grad = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    out = document_conv(x, weight, starts_of(lengths), activation=activation)
    parts = [
        torch.nn.functional.conv1d(
            torch.nn.functional.pad(part.transpose(1, 2), (width - 1, 0)), weight, groups=c
        )
        for part in x.split(lengths, 1)
    ]
    expected = torch.cat(parts, 2).transpose(1, 2)
    if activation == "silu":
        expected = torch.nn.functional.silu(expected)
    torch.testing.assert_close(out, expected)
    for mine, theirs in zip(
        torch.autograd.grad(out, (x, weight), grad),
        torch.autograd.grad(expected, (x, weight), grad),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs)


def test_documents_end_to_end_for_kernels_that_ask() -> None:
    positions = torch.tensor([[0, 1, 2, 0, 1], [3, 4, 0, 0, 1]])  # the second row goes on with a document
    runs = document_runs(None, positions, None, wants_ends=True)
    assert runs is not None
    assert runs.ends is not None
    assert runs.ends.tolist() == [0, 3, 5, 7, 8, 10]
    assert runs.starts.tolist() == [[0, 0, 0, 3, 3], [0, 0, 2, 3, 3]]


@pytest.mark.gpu
@pytest.mark.parametrize("is_packed", [False, True])
def test_flash_linear_attention_computes_the_same(is_packed: bool) -> None:
    pytest.importorskip("fla.ops.gated_delta_rule")
    b, s, n_k, n_v, width = 2, 200, 3, 6, 64  # kernels take widths that are powers of two
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).cuda()

    q, k, v = normal(b, s, n_k, width), normal(b, s, n_k, width), normal(b, s, n_v, width)
    gates = (-normal(b, s, n_v).abs(), normal(b, s, n_v).sigmoid())
    positions = (torch.arange(s, device="cuda") % 70).expand(b, s)
    runs = document_runs(None, positions, None, wants_ends=True) if is_packed else None
    grad = normal(b, s, n_v, width)
    for dtype, tolerance in (
        (torch.bfloat16, 2e-2),
        (torch.float32, 1e-2),
    ):  # its products are of tf32 at best
        inputs = [*(tensor.to(dtype).requires_grad_() for tensor in (q, k, v))]
        inputs += [tensor.clone().requires_grad_() for tensor in gates]
        found, expected = [], []
        for results, out in (
            (found, fla_delta_rule(*inputs, runs)),
            (expected, gated_delta_rule(*inputs, None if runs is None else runs.starts, None)[0]),
        ):
            results += [out.detach(), *torch.autograd.grad(out, inputs, grad.to(out.dtype))]
        for mine, theirs in zip(expected, found, strict=True):
            assert (mine.float() - theirs.float()).norm() < tolerance * mine.float().norm()


@pytest.mark.parametrize(("b", "s", "n_v", "d_k", "d_v"), [(2, 1100, 4, 64, 32), (3, 200, 6, 32, 48)])
def test_what_the_rule_takes_while_it_works_is_known(b: int, s: int, n_v: int, d_k: int, d_v: int) -> None:
    """Within a third: it is planned for, and no caller sees it."""
    q, k, v = (torch.randn(b, s, n, d) for n, d in ((2, d_k), (2, d_k), (n_v, d_v)))
    gates = (-torch.rand(b, s, n_v), torch.rand(b, s, n_v))
    with LiveBytes() as live, torch.no_grad():
        grads = kernel._backward._init_fn(torch.randn(v.shape), q, k, v, *gates, None, None)
    working = live.peak - v.nbytes - sum(grad.nbytes for grad in grads)
    assert kernel.working_bytes(b, s, n_v, d_k, d_v) == pytest.approx(working, rel=1 / 3)
