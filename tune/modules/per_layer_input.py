"""A second embedding, of which every layer gets its own part.

Shapes: b batch, s sequence, d width, L layers, p width of one layer's input.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from tune.modules.activation import activate
from tune.modules.layer_config import PerLayerInputConfig
from tune.modules.linear import Linear
from tune.modules.norm import RMSNorm


class PerLayerInput(nn.Module):
    """For each layer the mean of what a token's row in a table says and what its embedding does, at unit variance.

    # transformers, models/gemma4/modeling_gemma4.py, project_per_layer_inputs

    Args:
        config: rows of the table, and p.
        num_layers: L.
        embed_dim: d.
        norm_eps: added to the mean square in the norm.
    """

    def __init__(self, config: PerLayerInputConfig, num_layers: int, embed_dim: int, norm_eps: float) -> None:
        super().__init__()
        self.num_layers, self.dim, self.embed_dim = num_layers, config.dim, embed_dim
        self.table: nn.Embedding = nn.Embedding.from_pretrained(  # type: ignore[no-untyped-call]
            torch.empty(config.vocab_size, num_layers * config.dim), freeze=False
        )
        self.projection = Linear(embed_dim, num_layers * config.dim, bias=False)
        self.norm = RMSNorm(config.dim, norm_eps)

    def forward(self, tokens: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        """Return each layer's input [b, s, p].

        Args:
            tokens: [b, s].
            x: their embeddings [b, s, d].
        """
        rows = self.table(tokens)
        # Rounded to the table's dtype, as these models were trained; on the host, so nothing waits.
        rows = rows * torch.tensor(self.dim**0.5, dtype=rows.dtype, device="cpu").item()
        said = (self.projection(x) * self.embed_dim**-0.5).unflatten(-1, (self.num_layers, self.dim))
        both: Tensor = (self.norm(said) + rows.view_as(said)) * 2.0**-0.5  # [b, s, L, p]
        return both.unbind(2)


class PerLayerGate(nn.Module):
    """What a layer makes of its own input: x + norm(W act(G x) * input).

    Args:
        embed_dim: d.
        dim: p.
        activation: the gate's function.
        norm_eps: added to the mean square in the norm.
    """

    def __init__(
        self, embed_dim: int, dim: int, activation: Literal["silu", "gelu_tanh"], norm_eps: float
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gate = Linear(embed_dim, dim, bias=False)
        self.projection = Linear(dim, embed_dim, bias=False)
        self.norm = RMSNorm(embed_dim, norm_eps)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        """Return [b, s, d] for x [b, s, d] and the layer's input [b, s, p]."""
        out: Tensor = x + self.norm(self.projection(activate(self.gate(x), self.activation) * given))
        return out
