"""Activations that wait on the host: the same gradients, strides kept, each storage copied once each way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from tune.errors import TrainingError
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.training import activation_offloading, checkpoint_activations, compile_blocks
from tune.training.offloading import OffloadedActivations

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")],
    ),
]


class CopiedBytes(TorchDispatchMode):
    """Counts the sizes of storages that are copied as bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].dtype == torch.uint8:
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def build(device: str) -> TransformerDecoder:
    torch.manual_seed(4)
    return TransformerDecoder(DecoderConfig(61, 2, 6, 2, 48, 8, 50, 64)).to(device)


def gradients(model: TransformerDecoder, min_bytes: int | None = None) -> list[Tensor]:
    device = model.tok_embeddings.weight.device
    context = activation_offloading(model, device, False)
    if min_bytes is not None:
        context = OffloadedActivations(model, device, min_bytes)
    tokens = torch.arange(22, device=device).view(2, 11)
    found = []
    for _ in range(2):  # it is entered again for each forward pass
        model.zero_grad()
        with context:
            loss = loss_sum(LinearCrossEntropyLoss(), model, tokens, tokens)
        loss.backward()
        found = [weight.grad for weight in model.parameters() if weight.grad is not None]
    return found


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("recomputed", [0, 1])
def test_gradients_are_the_same_to_the_bit(device: str, recomputed: int) -> None:
    model = build(device)
    checkpoint_activations(model.layers[:recomputed])
    for expected, actual in zip(gradients(model), gradients(model, min_bytes=0), strict=True):
        assert torch.equal(expected, actual)


class Turning(nn.Module):
    """Saves for its backward pass what lies transposed in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.linear(x).unflatten(2, (2, 3)).transpose(1, 2)  # [b, 2, s, 3]
        return nn.functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("device", DEVICES)
def test_compiled_blocks_get_their_strides_back(device: str) -> None:
    """The real compiler: its backward graph asserts the strides of what its forward graph has saved."""
    torch.manual_seed(4)
    model = Turning().to(device)
    x = torch.randn(3, 4, 6, device=device)
    (expected,) = torch.autograd.grad(model(x).square().sum(), [model.linear.weight])
    compile_blocks([model])
    with OffloadedActivations(model, x.device, 0):
        loss = model(x).square().sum()
    assert counters["stats"]["unique_graphs"] == 1
    (actual,) = torch.autograd.grad(loss, [model.linear.weight])
    torch.testing.assert_close(expected, actual, rtol=1e-5, atol=1e-5)


def views(x: Tensor) -> Tensor:
    """Save one storage several times: whole, transposed, a part, spread out."""
    y = x * 2.0
    return y.sin().sum() + y.t().exp().sum() + y[1:, ::2].cos().sum() + y[:1].expand(4, -1).sinh().sum()


def twice_written(x: Tensor) -> Tensor:
    y = x * 2.0
    first = y.cos().sum()  # saves what is then overwritten, as autograd without hooks refuses
    return first + y.add_(1.0).sin().sum()


@pytest.mark.parametrize("save", [views, twice_written])
def test_each_storage_is_copied_once(save: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-1, 1, 40).view(4, 10).requires_grad_()
    with OffloadedActivations(nn.Linear(2, 2), torch.device("cpu"), 0), CopiedBytes() as outward:
        loss = save(x)
    with CopiedBytes() as inward:
        loss.backward()
    # Of the views: `y`, and what `exp` gave; else `y` as it was before and after.
    assert outward.sizes == inward.sizes == [160, 160]
    y = 2 * x.detach()
    expected = y.cos() + y.t().exp().t() if save is views else (y + 1).cos() - y.sin()
    if save is views:
        expected[1:, ::2] -= y[1:, ::2].sin()
        expected[0] += 4 * y[0].cosh()
    torch.testing.assert_close(x.grad, 2 * expected)


def test_weights_and_small_tensors_stay() -> None:
    model = nn.Sequential(nn.Linear(6, 30), nn.Linear(30, 6))
    with OffloadedActivations(model, torch.device("cpu"), 480), CopiedBytes() as copied:
        loss = model(torch.ones(4, 6, requires_grad=True)).square().sum()
    assert copied.sizes == [4 * 30 * 4]  # what lies between; the input and what is squared have 96 bytes
    loss.backward()


def test_offloading_needs_a_gpu() -> None:
    model = nn.Linear(6, 6)
    with pytest.raises(TrainingError, match="enable_activation_offloading"):
        activation_offloading(model, torch.device("cpu"), True)
    with activation_offloading(model, torch.device("cpu"), False):
        model(torch.ones(1, 6))
