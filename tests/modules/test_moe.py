"""The mixture of experts against the plain formula, token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tune.errors import ConfigError
from tune.modules import ClampedSwiGLU, DecoderConfig, MixtureOfExperts, MoEConfig, TransformerDecoder
from tune.modules.peft import FrozenLinear, LoRAExperts, LoRALinear

D, HIDDEN, NUM_EXPERTS, PER_TOKEN = 16, 24, 7, 3  # whole 16 bytes in bf16, as grouped products want it
CONFIG = MoEConfig(num_experts=NUM_EXPERTS, experts_per_token=PER_TOKEN, intermediate_dim=HIDDEN)
BIASED = replace(CONFIG, bias=True, clamped=ClampedSwiGLU(1.3, 0.8))


def mixture(config: MoEConfig = CONFIG) -> MixtureOfExperts:
    torch.manual_seed(4)
    module = MixtureOfExperts(D, config)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


@pytest.fixture(params=["loop", "grouped"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the experts' products are formed; on a GPU they are one."""
    if request.param == "grouped":
        group(monkeypatch)
    return request.param


def group(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("moe", "grouped_linear"):
        monkeypatch.setattr(f"tune.modules.{module}.can_group", lambda *arguments: True)


def expert(module: MixtureOfExperts, place: int, x: Tensor) -> Tensor:
    layers = (module.experts.w1, module.experts.w2, module.experts.w3)
    w1, w2, w3 = (layer.weight[place] for layer in layers)
    if module.experts.clamped is None:
        return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)
    b1, b2, b3 = (layer.bias[place] for layer in layers)
    gate, up = F.linear(x, w1, b1).clamp(max=0.8), F.linear(x, w3, b3).clamp(-0.8, 0.8)
    return F.linear((up + 1) * gate * torch.sigmoid(1.3 * gate), w2, b2)


def token_by_token(module: MixtureOfExperts, config: MoEConfig, x: Tensor) -> Tensor:
    """The weighted sum of each token's best experts, as arXiv:2401.04088, 2.1 writes it."""
    rows = []
    for token in x.reshape(-1, D):
        bias = 0.0 if module.router.bias is None else module.router.bias.float()
        probabilities = torch.softmax(module.router.weight.float() @ token.float() + bias, 0)
        best = probabilities.argsort(descending=True)[: config.experts_per_token]
        share = probabilities[best] / (probabilities[best].sum() if config.normalize_weights else 1.0)
        rows.append(sum(weight * expert(module, int(index), token) for weight, index in zip(share, best)))
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize("normalize_weights", [True, False])
@pytest.mark.parametrize("experts_per_token", [1, PER_TOKEN, NUM_EXPERTS])
@pytest.mark.parametrize("base", [CONFIG, BIASED], ids=["plain", "biased"])
def test_value_and_gradients_equal_the_sum_token_by_token(
    way: str, base: MoEConfig, normalize_weights: bool, experts_per_token: int
) -> None:
    config = replace(base, normalize_weights=normalize_weights, experts_per_token=experts_per_token)
    module, twin = mixture(config), mixture(config)
    x = torch.randn(2, 9, D, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ours, theirs = module(x), token_by_token(twin, config, y)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-5)
    for (name, parameter), other in zip(module.named_parameters(), twin.parameters(), strict=True):
        expected = torch.zeros_like(other) if other.grad is None else other.grad
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_an_expert_without_tokens_has_a_gradient_of_zeros(way: str) -> None:
    module = mixture(BIASED)
    module(torch.randn(1, 1, D)).sum().backward()
    for layer in module.experts.parameters():
        idle = [torch.equal(grad, torch.zeros_like(grad)) for grad in layer.grad]
        assert sum(idle) == NUM_EXPERTS - PER_TOKEN


def test_no_tokens_at_all_are_no_error(way: str) -> None:
    module = mixture(BIASED)
    out = module(torch.randn(2, 0, D))
    out.sum().backward()
    assert out.shape == (2, 0, D)
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_half_precision_routes_by_its_logits_and_keeps_its_dtype(way: str) -> None:
    module = mixture().to(torch.bfloat16)
    x = torch.randn(3, 5, D).to(torch.bfloat16)
    out = module(x)
    assert out.dtype == torch.bfloat16
    # Against the same rounded weights in fp32: the router's choice may turn where two experts are as good.
    exact = token_by_token(module.float(), CONFIG, x.float())
    near = (out.float() - exact).norm(dim=-1) < 0.05 * exact.norm(dim=-1).clamp(min=0.1)
    assert near.float().mean() > 0.8


def test_autocast_keeps_the_router_exact_through_its_softmax(way: str) -> None:
    module, x = mixture(), torch.randn(3, 5, D)
    with torch.autocast("cpu", torch.bfloat16):
        out = module(x)
    exact = module(x)
    near = (out.float() - exact).norm(dim=-1) < 0.05 * exact.norm(dim=-1).clamp(min=0.1)
    assert near.float().mean() > 0.8


@pytest.mark.parametrize("kind", ["full", "lora", "nf4"])
def test_experts_are_compiled_whole_and_recomputed(way: str, kind: str) -> None:
    """One graph without a break, whatever the rows' spread over the experts is."""
    counters.clear()
    torch._dynamo.reset()
    plain, compiled = (adapted(mixture(BIASED).bfloat16(), kind) for _ in range(2))

    def recomputed(x: Tensor) -> Tensor:
        return checkpoint(compiled, x, use_reentrant=False)

    forward = torch.compile(recomputed, backend="aot_eager", dynamic=True, fullgraph=True)
    for num_tokens in (9, 5, 9):
        x = torch.randn(2, num_tokens, D).bfloat16()
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        outs = plain(inputs[0]), forward(inputs[1])
        for out in outs:
            out.square().sum().backward()
        torch.testing.assert_close(outs[1], outs[0])
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for left, right in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert (left.grad is None) == (not left.requires_grad)
        torch.testing.assert_close(left.grad, right.grad)
    assert counters["stats"]["unique_graphs"] == 1


def adapted(module: MixtureOfExperts, kind: str) -> MixtureOfExperts:
    """The same with adapters, and perhaps with frozen matrices in 4 bits."""
    if kind == "full":
        return module
    module.requires_grad_(False)
    for leaf in ("w1", "w2", "w3"):
        plain = module.experts.get_submodule(leaf)
        stack = plain.weight
        layer = LoRAExperts(NUM_EXPERTS, stack.shape[2], stack.shape[1], 8, 4.0, quantize_base=kind == "nf4")
        layer.fill_weight(stack.detach())
        layer.bias = plain.bias
        layer.reset_adapter(stack.dtype)
        generator = torch.Generator().manual_seed(len(leaf) + ord(leaf[1]))
        with torch.no_grad():
            for parameter in (layer.lora_a.weight, layer.lora_b.weight):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        setattr(module.experts, leaf, layer)
    return module


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("kind", ["lora", "nf4"])
def test_adapters_of_experts_equal_those_of_single_matrices(way: str, kind: str, dropout: float) -> None:
    """Each expert is a `LoRALinear` of its own: values, gradients and what is dropped."""
    torch.manual_seed(2)
    layer = LoRAExperts(4, 16, 24, 8, 3.0, dropout, quantize_base=kind == "nf4", use_rslora=True)
    layer.fill_weight(torch.randn(4, 24, 16))
    layer.reset_adapter(torch.float32)
    nn.init.normal_(layer.lora_b.weight)
    singles = []
    for place in range(4):
        single = LoRALinear(16, 24, 8, 3.0, quantize_base=kind == "nf4", use_rslora=True)
        single.fill_weight(layer.merged_expert(place, None) - layer.scaling * change(layer, place))
        if kind == "nf4":
            stored = layer.nf4.buffers_in_order()
            for own, room in zip(single.nf4.buffers_in_order(), stored, strict=True):
                own.copy_(room[place])
        for ours, theirs in ((single.lora_a, layer.lora_a), (single.lora_b, layer.lora_b)):
            ours.weight = nn.Parameter(theirs.weight[place].detach().clone())
        singles.append(single)
    x = torch.randn(11, 16, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    ends = torch.tensor([3, 3, 10, 11], dtype=torch.int32)
    torch.manual_seed(9)
    out = layer(x, ends)
    torch.manual_seed(9)
    kept = torch.native_dropout(torch.ones_like(x), dropout, True)[0] if dropout else torch.ones_like(x)
    expected = torch.cat(
        [
            FrozenLinear.forward(single, y[rows])
            + single.scaling * single.lora_b(single.lora_a(y[rows] * kept[rows]))
            for single, rows in zip(singles, (slice(0, 3), slice(3, 3), slice(3, 10), slice(10, 11)))
        ]
    )
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-4)
    weights = torch.randn_like(out)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)
    for name in ("lora_a", "lora_b"):
        grads = torch.stack([single.get_submodule(name).weight.grad for single in singles])
        torch.testing.assert_close(layer.get_submodule(name).weight.grad, grads, rtol=1e-4, atol=1e-4)
    assert layer.lora_b.weight.grad[1].abs().sum() == 0


def change(layer: LoRAExperts, place: int) -> Tensor:
    return layer.lora_b.weight[place] @ layer.lora_a.weight[place]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"experts_per_token": 8}, "experts_per_token is 8"),
        ({"experts_per_token": 0}, "experts_per_token is 0"),
        ({"clamped": ClampedSwiGLU(limit=-0.5)}, "the gate's limit is -0.5; it must be above 0"),
        ({"intermediate_dim": 0}, "intermediate_dim is 0"),
        ({"dense_layers": (3,)}, "dense_layers names layer 3"),
    ],
)
def test_impossible_experts_are_named(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DecoderConfig(31, 3, 2, 1, 8, 4, 6, 16, moe=replace(CONFIG, **change))


def test_dense_layers_have_one_feed_forward_among_experts() -> None:
    config = DecoderConfig(31, 3, 2, 1, 8, 4, 6, 16, moe=replace(CONFIG, dense_layers=(1,)))
    model = TransformerDecoder(config)
    assert [isinstance(layer.mlp, MixtureOfExperts) for layer in model.layers] == [True, False, True]
    assert sum(parameter.numel() for parameter in model.parameters()) == config.num_parameters()


@pytest.mark.gpu
def test_a_gpu_gives_what_the_loop_gives() -> None:
    here, there = mixture(BIASED).bfloat16(), mixture(BIASED).bfloat16().cuda()
    for x in (torch.randn(1, 1, D).bfloat16(), torch.randn(2, 9, D).bfloat16()):
        here.zero_grad()
        there.zero_grad()
        outs = here(x), there(x.cuda())
        outs[0].float().sum().backward()
        outs[1].float().sum().backward()
        torch.testing.assert_close(outs[1].cpu(), outs[0], rtol=0.05, atol=0.05)
        for left, right in zip(there.experts.parameters(), here.experts.parameters(), strict=True):
            torch.testing.assert_close(left.grad.cpu(), right.grad, rtol=0.05, atol=0.1)
