"""A matrix in fp32 that multiplies in bf16: torch's results, and no copy of it from one pass to the other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tune.modules import DecoderBlock, DecoderConfig, TransformerDecoder
from tune.modules.linear import Linear
from tune.modules.peft import LoRAConfig, apply_lora
from tune.training import compile_blocks

B, S, IN, OUT = 2, 5, 7, 11
CONFIG = DecoderConfig(61, 1, 6, 2, 48, 10, 56, 40, attn_bias="qkv")


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torchs_own_to_the_bit(dtype: torch.dtype, has_bias: bool) -> None:
    """Whatever comes in, with autocast and without."""
    torch.manual_seed(2)
    theirs = nn.Linear(IN, OUT, bias=has_bias)
    ours = Linear(IN, OUT, bias=has_bias)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(B, S, IN).to(dtype)
    for enabled in (True, False):
        found = []
        for module in (ours, theirs):
            module.zero_grad()
            y = x.clone().requires_grad_()
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                if not enabled and dtype != torch.float32:
                    with pytest.raises(RuntimeError, match="dtype"):
                        module(y)
                    continue
                out = module(y)
            out.float().square().sum().backward()
            found.append([out, y.grad, *(parameter.grad for parameter in module.parameters())])
        for one, other in zip(*found) if found else ():
            assert one.dtype == other.dtype
            assert torch.equal(one, other)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_block_keeps_no_weights_in_another_type(method: str, compiled: bool) -> None:
    """Twice the weights in fp32 are the same activations in bf16, and not a byte more."""
    model = TransformerDecoder(CONFIG)
    if method == "lora":
        apply_lora(model, LoRAConfig(attn_modules=("q_proj", "output_proj"), apply_to_mlp=True))
    block: DecoderBlock = model.layers[0]
    if compiled:
        torch._dynamo.reset()
        compile_blocks([block], backend="aot_eager_decomp_partition")
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    given: set[int] = set()

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in given:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    sizes = []
    for num_tokens in (S, 2 * S):
        kept.clear()
        x = torch.randn(B, num_tokens, CONFIG.embed_dim, requires_grad=True)
        rope = model.rope(torch.arange(num_tokens)[None], num_tokens)
        # Those of this round alone: what is freed leaves its place to what is kept in the next.
        given = weights | {tensor.untyped_storage().data_ptr() for tensor in rope}
        with (
            torch.autocast("cpu", torch.bfloat16),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            out = block(x, rope)
        sizes.append(sum(kept.values()))
        out.sum().backward()
    # What is kept whatever the number of tokens: of adapters, their copies in bf16.
    fixed = 2 * sizes[0] - sizes[1]
    adapters = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert fixed <= (2 * adapters if method == "lora" else 64)
