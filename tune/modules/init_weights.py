"""Values that a decoder begins with when it is trained from scratch."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from tune.modules.attention import SelfAttention
from tune.modules.experts import ExpertLinear
from tune.modules.gated_delta import GatedDeltaNet
from tune.modules.layer_scale import LayerScale
from tune.modules.moe_beside import ScaledRouter
from tune.modules.norm import RMSNorm
from tune.modules.peft.experts import LoRAExperts
from tune.modules.peft.lora import LoRALinear
from tune.modules.per_layer_input import PerLayerInput
from tune.modules.short_conv import ShortConv
from tune.utils.sharding import init_sharded_


@torch.no_grad()
def init_weights_(model: nn.Module, embedding: Tensor, num_layers: int) -> None:
    """Initialise every parameter of a decoder in place.

    Normal with deviation 0.02; matrices that add to the residual stream are divided by the root of their number, so
    that its variance does not grow with depth.  # GPT-2 (Radford et al. 2019), 2.3
    Norms and scales start at one, biases at zero.

    Args:
        model: with memory.
        embedding: of its tokens.
        num_layers: its blocks.
    """
    draw = partial(nn.init.normal_, std=0.02)
    init_sharded_(embedding, draw)
    for module in model.modules():
        if isinstance(module, PerLayerInput):
            init_sharded_(module.table.weight, draw)
        if isinstance(module, ScaledRouter):
            module.reset_scales()
        if isinstance(module, nn.Linear | ExpertLinear | LoRALinear | LoRAExperts):
            if module.weight is not None:  # one in 4 bits has none
                init_sharded_(module.weight, draw)
        elif isinstance(module, RMSNorm | GatedDeltaNet | ShortConv | LayerScale | SelfAttention):
            module.reset_parameters()
        if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
            nn.init.zeros_(bias)
    draw_residual = partial(nn.init.normal_, std=0.02 / math.sqrt(2 * num_layers))
    for name, parameter in model.named_parameters():
        if name.endswith(("attn.output_proj.weight", "attn.out_proj.weight", ".w2.weight")):
            init_sharded_(parameter, draw_residual)
    for module in model.modules():
        if isinstance(module, LoRALinear | LoRAExperts):
            module.reset_adapter()  # after its matrix, whose lengths DoRA begins with
