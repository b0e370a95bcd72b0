"""The step of one token in shapes that stay: the same tokens, in one graph, and nothing waits in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tune.errors import GenerationError
from tune.generation import fixed_step, generate_batch, stream_batch
from tune.generation.fixed_step import FixedStep
from tune.modules import DecoderConfig, GatedDeltaConfig, LongRopeScaling, MoEConfig, TransformerDecoder
from tune.modules.layer_config import PerLayerInputConfig, SharedKVConfig
from tune.modules.short_conv_config import ShortConvConfig

VOCAB = 89
PLAIN = DecoderConfig(VOCAB, 2, 6, 2, 36, 10, 52, 47)
LONG = LongRopeScaling((1.0, 1.1, 1.2, 1.3, 1.4), (1.5, 2.0, 2.5, 3.0, 3.5), 19, magnitude=1.1)
KINDS = {
    "plain": PLAIN,
    "caps": replace(PLAIN, attn_softcap=2.0, sliding_window=7, sliding_layers=(1,), embed_scale=6.0),
    "states": replace(PLAIN, delta=GatedDeltaConfig((0,), 2, 4, 6, 10), attn_gate=True),
    "gates": replace(
        PLAIN,
        attn_gate=True,
        attn_gate_apart=True,
        qk_norm="scaleless",
        embed_norm=True,
        nope_layers=(1,),
        sliding_window=7,
        sliding_layers=(0,),
    ),
    "sinks": replace(PLAIN, attn_sinks=True, sliding_window=7, sliding_layers=(0,), attn_bias="all"),
    "convolutions": replace(PLAIN, conv=ShortConvConfig((0,), 4, bias=True), qk_norm="head"),
    "shared keys": replace(
        PLAIN,
        num_layers=4,
        sliding_window=7,
        sliding_layers=(0, 2),
        shared_kv=SharedKVConfig(2, 45),
        per_layer_input=PerLayerInputConfig(VOCAB, 6),
    ),
    "experts": replace(PLAIN, moe=MoEConfig(7, 3, 40, dense_layers=(1,))),
    "longer texts": replace(PLAIN, rope_scaling=LONG),
}
PROMPTS = [[3, 88, 0, 17, 17], [5], [60, 61, 62], [7, 9, 11]]


def model_of(config: DecoderConfig) -> TransformerDecoder:
    torch.manual_seed(3)
    model = TransformerDecoder(config)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than a fresh model's, so that the text does not settle
            parameter.add_(torch.randn_like(parameter) * 0.25)
    return model.eval()


@pytest.fixture
def one_graph(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compilation without making machine code."""
    monkeypatch.setattr(fixed_step, "_BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def num_graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_those_of_shapes_that_grow(kind: str, one_graph: None) -> None:
    model = model_of(KINDS[kind])
    prompts = PROMPTS[2:] if kind == "plain" else PROMPTS  # of one length, and of different ones
    expected = generate_batch(model, prompts, max_new_tokens=23)
    assert generate_batch(model, prompts, max_new_tokens=23, compile=True) == expected
    assert len({token for row in expected for token in row}) > 8


@pytest.mark.parametrize("kind", ["caps", "states"])
def test_one_graph_for_all_tokens_and_texts(kind: str, one_graph: None) -> None:
    model = model_of(KINDS[kind])
    generate_batch(model, PROMPTS, max_new_tokens=2, compile=True)
    before = num_graphs()
    assert before == (2 if kind == "states" else 1)
    generate_batch(model, PROMPTS[::-1], max_new_tokens=23, compile=True)
    generate_batch(model, [prompt * 3 for prompt in PROMPTS], max_new_tokens=9, compile=True)
    assert num_graphs() == before
    assert not counters["graph_break"]


class Waits(TorchDispatchMode):
    """Notes the operators that tell the host a value, or a shape that hangs on one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func.overloadpacket in (aten._local_scalar_dense, aten.nonzero, aten.is_nonzero, aten.equal):
            self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["plain", "states", "sinks", "convolutions"])
@torch.no_grad()
def test_no_operator_of_a_step_waits(kind: str) -> None:
    model = model_of(KINDS[kind])
    model.setup_caches(3, 16)
    step = FixedStep(model, 3)
    with Waits() as waits:
        step(torch.tensor([[1], [2], [3]]), torch.tensor([[4], [0], [9]]))
    assert waits.names == []


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="torch is built without CUDA")
@pytest.mark.parametrize("kind", ["plain", "caps", "states", "sinks", "convolutions", "shared keys"])
def test_a_gpu_is_never_asked_for_a_value(kind: str) -> None:
    """Tensors without memory that pass for a GPU's: an operator that told the host a value would raise."""
    with torch.device("meta"):
        model = TransformerDecoder(KINDS[kind]).to(torch.bfloat16).eval()
    with FakeTensorMode(), torch.no_grad():
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                fake = torch.empty(weight.shape, dtype=weight.dtype, device="cuda")
                setattr(module, name, nn.Parameter(fake, requires_grad=False))
        model.setup_caches(3, 16)
        step = FixedStep(model, 3)
        tokens = torch.zeros(3, 1, dtype=torch.long, device="cuda")
        assert step(tokens, tokens).shape == (3, VOCAB)


def test_batches_of_one_shape_share_their_caches(monkeypatch: pytest.MonkeyPatch, one_graph: None) -> None:
    model, made = model_of(PLAIN), []
    setup_caches = model.setup_caches

    def noted(*args: Any) -> None:
        made.append(args[:2])
        setup_caches(*args)

    monkeypatch.setattr(model, "setup_caches", noted)
    prompts = [[5 + place] * (1 + place % 4) for place in range(11)]
    answers = generate_batch(model, prompts, max_new_tokens=3)
    made.clear()
    rows = stream_batch(model, prompts, max_new_tokens=3, batch_size=4, compile=True)
    assert [list(row) for row in rows] == answers
    assert made == [(4, 47), (3, 47)]  # the last batch has a shape of its own
    assert not model.caches_are_enabled()


@torch.no_grad()
def test_texts_may_be_read_in_both_ways_by_turns() -> None:
    model = model_of(KINDS["states"])
    tokens = torch.randint(0, VOCAB, (2, 15), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(15).expand(2, -1)
    expected = model(tokens)
    model.setup_caches(2, 31)
    step, out = FixedStep(model, 2), []
    for start, end in ((0, 4), (4, 5), (5, 6), (6, 9), (9, 10), (10, 15)):
        piece, places = tokens[:, start:end], positions[:, start:end]
        out.append(step(piece, places)[:, None] if end - start == 1 else model(piece, input_pos=places))
    torch.testing.assert_close(torch.cat(out, 1), expected, rtol=1e-4, atol=1e-4)
    with model.fixed_cache_shapes(), pytest.raises(GenerationError, match="3 tokens came with positions"):
        model(tokens[:, :3], input_pos=positions[:, :3])
    model.delete_caches()
    with pytest.raises(GenerationError, match="no caches are set up"):
        model.fixed_cache_shapes()


@pytest.mark.parametrize("is_bias", [False, True])
def test_products_attend_as_the_kernels_do(is_bias: bool) -> None:
    attention = model_of(PLAIN).layers[0].attn
    q, k, v = torch.randn(3, 6, 4, 10), torch.randn(3, 2, 9, 10), torch.randn(3, 2, 9, 10)
    sees = torch.rand(3, 1, 4, 9) < 0.6
    sees[..., 0] = True
    mask = torch.zeros(sees.shape).masked_fill(~sees, -torch.inf) if is_bias else sees
    torch.testing.assert_close(
        attention._attend_by_products(q, k, v, mask), attention._attend(q, k, v, mask), rtol=1e-5, atol=1e-5
    )
