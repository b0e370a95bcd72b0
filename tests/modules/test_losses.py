"""The loss from hidden states equals plain cross-entropy, gradients included, in bounded memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tune.errors import ConfigError, TrainingError
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.loss import CEWithChunkedOutputLoss, LinearCrossEntropyLoss, get_loss, loss_sum

B, S, D, V = 3, 211, 13, 37  # more rows than one piece


def example(dtype: torch.dtype = torch.float32, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(B, S, D, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(V, D, generator=generator) * scale).to(dtype).requires_grad_()
    labels = torch.randint(0, V, (B, S), generator=generator)
    labels[torch.rand(B, S, generator=generator) < 0.3] = -100
    return hidden, weight, labels


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, softcap: float | None = None) -> Tensor:
    logits = F.linear(hidden, weight).flatten(0, 1).float()
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return F.cross_entropy(logits, labels.flatten(), reduction="sum", ignore_index=-100)


def value_and_grads(function: Any, *inputs: Tensor, factor: float = 1.0) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs[:2]]
    loss = function(*leaves, inputs[2])
    (loss * factor).backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("num_output_chunks", [1, 2, 8, 10_000])
@pytest.mark.parametrize("factor", [1.0, 0.25, 65_536.0])
def test_value_and_gradients_equal_plain_cross_entropy(num_output_chunks: int, factor: float) -> None:
    inputs = example()
    ours = value_and_grads(LinearCrossEntropyLoss(num_output_chunks), *inputs, factor=factor)
    theirs = value_and_grads(plain, *inputs, factor=factor)
    for left, right in zip(ours, theirs):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6 * factor * D)
        assert left.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_as_exact_as_cross_entropy(dtype: torch.dtype) -> None:
    inputs = example(dtype)
    ours = value_and_grads(LinearCrossEntropyLoss(), *inputs)
    theirs = value_and_grads(plain, *inputs)
    truth = value_and_grads(plain, *(t.double() if t.is_floating_point() else t for t in inputs))
    for left, right, exact in zip(ours, theirs, truth):
        assert left.dtype == right.dtype
        error, allowed = (left - exact).norm(), (right - exact).norm()
        assert error <= 1.5 * allowed + 1e-6 * exact.norm()


def test_autocast_keeps_fp32_gradients_for_fp32_weights() -> None:
    inputs = example()
    truth = value_and_grads(plain, *inputs)
    with torch.autocast("cpu", torch.bfloat16):
        ours = value_and_grads(LinearCrossEntropyLoss(), *inputs)
        theirs = value_and_grads(plain, *inputs)
    for left, right, exact in zip(ours, theirs, truth):
        assert left.dtype == torch.float32
        assert (left - exact).norm() <= 1.5 * (right - exact).norm() + 1e-6 * exact.norm()


def test_fp16_gradients_take_the_loss_scale_before_rounding() -> None:
    # Confident predictions: unscaled, these gradients lie below what fp16 can hold.
    hidden = torch.zeros(1, 300, D, dtype=torch.float16)
    weight = torch.zeros(V, D, dtype=torch.float16)
    hidden[..., 0], weight[5, 0] = 4.25, 5.0
    labels = torch.full((1, 300), 5)
    scale = 65_536.0
    _, _, grad = value_and_grads(LinearCrossEntropyLoss(), hidden, weight, labels, factor=scale)
    _, _, exact = value_and_grads(plain, hidden.double(), weight.double(), labels)
    assert exact[0].abs().max() > 0
    torch.testing.assert_close(grad.double() / scale, exact, rtol=0.02, atol=0)


@pytest.mark.parametrize("softcap", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("num_output_chunks", [1, 7])
def test_capped_logits_give_the_plain_value_and_gradients(softcap: float, num_output_chunks: int) -> None:
    inputs = example()
    ours = value_and_grads(partial(LinearCrossEntropyLoss(num_output_chunks), softcap=softcap), *inputs)
    theirs = value_and_grads(partial(plain, softcap=softcap), *inputs)
    for left, right in zip(ours, theirs):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)
    uncapped = value_and_grads(plain, *inputs)
    assert abs(uncapped[0] - ours[0]) > 1e-4 * uncapped[0]


@pytest.mark.parametrize("softcap", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_capped_logits_in_half_precision_are_as_exact(dtype: torch.dtype, softcap: float) -> None:
    inputs = example(dtype)
    capped = partial(plain, softcap=softcap)
    ours = value_and_grads(partial(LinearCrossEntropyLoss(), softcap=softcap), *inputs)
    theirs = value_and_grads(capped, *inputs)
    truth = value_and_grads(capped, *(t.double() if t.is_floating_point() else t for t in inputs))
    for left, right, exact in zip(ours, theirs, truth):
        assert left.dtype == right.dtype
        error, allowed = (left - exact).norm(), (right - exact).norm()
        assert error <= 1.5 * allowed + 1e-6 * exact.norm()


def test_logits_far_beyond_the_cap_stay_finite_and_have_no_slope() -> None:
    hidden, weight, labels = example(scale=1e4)
    value, *grads = value_and_grads(partial(LinearCrossEntropyLoss(), softcap=3.0), hidden, weight, labels)
    expected, *_ = value_and_grads(partial(plain, softcap=3.0), hidden, weight, labels)
    torch.testing.assert_close(value, expected)
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_targets_give_zero_loss_and_zero_gradients(dtype: torch.dtype) -> None:
    hidden, weight, labels = example(dtype)
    value, *grads = value_and_grads(LinearCrossEntropyLoss(), hidden, weight, torch.full_like(labels, -100))
    assert value == 0
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in grads)


def test_nonfinite_rows_without_a_target_get_no_gradient() -> None:
    hidden, weight, labels = example()
    hidden = hidden.detach().clone()
    hidden[labels == -100] = torch.nan
    value, grad_hidden, grad_weight = value_and_grads(LinearCrossEntropyLoss(), hidden, weight, labels)
    assert torch.isfinite(value)
    assert torch.isfinite(grad_weight).all()
    assert torch.equal(grad_hidden[labels == -100], torch.zeros_like(hidden[labels == -100]))


def test_huge_logits_stay_finite() -> None:
    hidden, weight, labels = example(scale=1e4)
    ours, theirs = (value_and_grads(f, hidden, weight, labels) for f in (LinearCrossEntropyLoss(), plain))
    for left, right in zip(ours, theirs):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-2)


def test_another_ignore_index_is_obeyed() -> None:
    hidden, weight, labels = example()
    other = labels.where(labels != -100, 3)
    got = LinearCrossEntropyLoss(ignore_index=3)(hidden, weight, other)
    kept = labels.where(other != 3, -100)
    torch.testing.assert_close(got, plain(hidden, weight, kept))


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_inputs_get_no_gradient(frozen: int) -> None:
    inputs = list(example())
    inputs[frozen] = inputs[frozen].detach()
    LinearCrossEntropyLoss()(*inputs).backward()
    assert inputs[frozen].grad is None
    assert inputs[1 - frozen].grad is not None


def test_without_grad_mode_only_the_value_is_formed() -> None:
    inputs = example()
    with torch.no_grad():
        value = LinearCrossEntropyLoss()(*inputs)
    assert not value.requires_grad
    torch.testing.assert_close(value, plain(*inputs).detach())


def test_a_second_backward_pass_is_refused_and_not_wrong() -> None:
    loss = LinearCrossEntropyLoss()(*example())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once"):
        loss.backward()


class LargestTensor(TorchDispatchMode):
    """Notes the largest result of any operation."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_tensor_is_as_large_as_all_logits(dtype: torch.dtype) -> None:
    rows, vocab = 2048, 1999
    hidden = torch.randn(1, rows, D, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, D, dtype=dtype, requires_grad=True)
    with LargestTensor() as seen:
        LinearCrossEntropyLoss()(hidden, weight, torch.randint(0, vocab, (1, rows))).backward()
    assert seen.elements <= rows * vocab / 8


@pytest.mark.parametrize("label", [V, -1, 10**9])
def test_a_label_outside_the_vocabulary_is_named(label: int) -> None:
    hidden, weight, labels = example()
    labels[1, 3] = label
    with pytest.raises(TrainingError, match=rf"a label is {label}, .* vocabulary has {V} entries"):
        LinearCrossEntropyLoss()(hidden, weight, labels)


def test_shapes_that_do_not_fit_are_named() -> None:
    hidden, weight, labels = example()
    with pytest.raises(TrainingError, match=r"\[3, 210\]"):
        LinearCrossEntropyLoss()(hidden, weight, labels[:, 1:])
    with pytest.raises(TrainingError, match=r"\[37, 12\]"):
        LinearCrossEntropyLoss()(hidden, weight[:, 1:], labels)
    with pytest.raises(ConfigError, match="num_output_chunks is 0"):
        LinearCrossEntropyLoss(num_output_chunks=0)


@pytest.mark.parametrize("is_tied", [False, True])
def test_loss_sum_is_the_same_from_hidden_states_and_logits(is_tied: bool) -> None:
    torch.manual_seed(2)
    config = DecoderConfig(V, 2, 4, 2, 12, 6, 17, 64, tie_word_embeddings=is_tied)
    model = TransformerDecoder(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    tokens, labels = torch.randint(0, V, (B, 21)), torch.randint(0, V, (B, 21))
    labels[0, 5:] = -100
    mask = torch.ones(21, 21).tril().bool().expand(B, 21, 21)
    positions = torch.arange(21)[None] + 3
    results = []
    for loss_fn in (
        LinearCrossEntropyLoss(),
        CEWithChunkedOutputLoss(num_output_chunks=3),
        nn.CrossEntropyLoss(reduction="sum", ignore_index=-100),
    ):
        model.zero_grad()
        loss = loss_sum(loss_fn, model, tokens, labels, mask, positions)
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for result in results[:-1]:
        for left, right in zip(result, results[-1], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss_fn", [LinearCrossEntropyLoss(), CEWithChunkedOutputLoss(3)])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_weights_multiply_the_loss_of_each_target(
    dtype: torch.dtype, softcap: float | None, loss_fn: LinearCrossEntropyLoss
) -> None:
    hidden, weight, labels = example(dtype)
    weights = torch.rand(B, S, generator=torch.Generator().manual_seed(3)) * 2.0

    def formula(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        logits = hidden @ weight.T
        logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
        is_target = labels != -100
        at_target = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]  # [b, s]
        return -(weights.double() * at_target)[is_target].sum()

    ours = value_and_grads(partial(loss_fn, softcap=softcap, weights=weights), hidden, weight, labels)
    exact = value_and_grads(formula, hidden.detach().double(), weight.detach().double(), labels)
    allowed = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 0.02, torch.float16: 0.004}[dtype]
    for left, right in zip(ours, exact):
        assert (left - right).norm() <= allowed * right.norm()
    ones = value_and_grads(partial(loss_fn, weights=torch.ones(B, S)), hidden, weight, labels)
    for left, right in zip(ones, value_and_grads(loss_fn, hidden, weight, labels)):
        torch.testing.assert_close(left, right)


class Halved(nn.Module):
    """A loss of one's own that takes weights."""

    def forward(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        losses = F.cross_entropy(logits, labels, reduction="none")
        return losses.sum() / 2 if weights is None else (losses * weights).sum() / 2


class Unweighted(nn.CrossEntropyLoss):
    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().forward(logits, labels)


def test_every_kind_of_loss_takes_weights_or_is_refused() -> None:
    torch.manual_seed(2)
    model = TransformerDecoder(DecoderConfig(V, 1, 2, 1, 8, 4, 12, S))
    tokens, labels = torch.randint(0, V, (B, 21)), torch.randint(0, V, (B, 21))
    labels[1, 3:9] = -100
    weights = torch.rand(B, 21)
    per_token = F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten(), reduction="none")
    expected = (per_token * weights.flatten()).sum()
    for loss_fn, factor in (
        (LinearCrossEntropyLoss(), 1.0),
        (nn.CrossEntropyLoss(reduction="sum"), 1.0),
        (Halved(), 0.5),
    ):
        loss = loss_sum(loss_fn, model, tokens, labels, weights=weights)
        torch.testing.assert_close(loss, expected * factor)
    with pytest.raises(ConfigError, match="Unweighted cannot take"):
        loss_sum(Unweighted(reduction="sum"), model, tokens, labels, weights=weights)
    with pytest.raises(TrainingError, match=r"weights \[3, 20\]"):
        loss_sum(LinearCrossEntropyLoss(), model, tokens, labels, weights=weights[:, 1:])


def test_accumulated_pieces_give_the_gradient_of_the_batch() -> None:
    hidden, weight, labels = example()
    loss = LinearCrossEntropyLoss()
    _, whole_hidden, whole_weight = value_and_grads(loss, hidden, weight, labels)
    leaf = weight.detach().clone().requires_grad_()
    for row in range(B):
        loss(hidden[row : row + 1].detach(), leaf, labels[row : row + 1]).backward()
    torch.testing.assert_close(leaf.grad, whole_weight, rtol=1e-5, atol=1e-4)
    assert whole_hidden.shape == hidden.shape


def test_losses_by_name_sum_over_targets() -> None:
    torch.manual_seed(2)
    model = TransformerDecoder(DecoderConfig(V, 1, 2, 1, 8, 4, 12, S))
    tokens, labels = torch.randint(0, V, (2, 7)), torch.randint(0, V, (2, 7))
    values = [
        loss_sum(get_loss(name, **arguments), model, tokens, labels)
        for name, arguments in (
            ("LinearCrossEntropyLoss", {"num_output_chunks": 3}),
            ("CEWithChunkedOutputLoss", {}),
            ("CrossEntropyLoss", {"ignore_index": -100}),
        )
    ]
    for value in values:
        torch.testing.assert_close(value, values[0])
    assert values[0] > 14  # a sum, no mean: 14 targets of about log(37) each
    with pytest.raises(ConfigError, match="did you mean 'CrossEntropyLoss'"):
        get_loss("CrossEntropyLos")
    with pytest.raises(ConfigError, match="no argument 'chunks'; it has num_output_chunks, ignore_index"):
        get_loss("LinearCrossEntropyLoss", chunks=3)
