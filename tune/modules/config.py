"""The one description of a decoder: everything that decides its numbers, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal

from tune.errors import ConfigError
from tune.modules.gated_delta_config import GatedDeltaConfig
from tune.modules.layer_config import (
    FullAttentionConfig,
    LayerSizes,
    PerLayerInputConfig,
    SharedKVConfig,
)
from tune.modules.moe_config import MoEConfig
from tune.modules.rope_scaling import DynamicScaling, QueryScaling, RopeScaling
from tune.modules.short_conv_config import ShortConvConfig

# A stranger's file must not make us build modules without end.
_MAX_LAYERS = 1_000
_MAX_EXPERTS = 100_000  # of all layers: each has names of its own
_MAX_PARAMETERS = 10**14


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a decoder-only transformer.

    Args:
        vocab_size: rows of the embedding and of the output matrix.
        num_layers: blocks.
        num_heads: query heads per block.
        num_kv_heads: key and value heads per block; a divisor of `num_heads`.
        embed_dim: width of the residual stream.
        head_dim: width of one head.
        intermediate_dim: width inside the feed-forward.
        max_seq_len: positions the model was trained for; generation and data stop there, the layers do not.
        norm_eps: added to the mean square in every norm.
        rope_base: base of the rotary frequencies.
        tie_word_embeddings: the output matrix is the embedding matrix.
        attn_dropout: dropout probability on attention weights, in training mode only.
        rope_scaling: how the rotary frequencies are stretched for longer texts; None: they are not.
        query_scaling: how queries grow with their position; None: they do not.
        rotary_dim: channels of a head that turn, the first ones; even. None: all.
        rotary_pairs: which of these turn together: one of each half, or neighbours.
        nope_layers: layers without rotary positions, counted from 0.
        attn_bias: biases of attention: none, those of queries, keys and values, the output matrix's, or all four.
        qk_norm: norm on queries and keys before they turn: none, over each head, over all heads together, or over each
            head without scales.
        attn_scale: factor on the attention scores; None: one over the root of `head_dim`.
        attn_softcap: bound that a tanh keeps the attention scores within.
        attn_sinks: each head has a score of no key, learnt, that takes its share of the attention's weights.
        v_norm: norm without scales on each head's values.
        full_attention: heads of the layers without a window, where they differ from the others'.
        shared_kv: layers that attend to the keys and values of an earlier one; None: each has its own.
        attn_gate: what a head attends to is multiplied by a sigmoid of the token; that matrix is beside its queries'.
        attn_gate_apart: that matrix is one of its own instead, without bias.
        delta: layers that keep a state instead of attending; None: there are none.
        conv: layers that see a few tokens instead; None: there are none.
        sliding_window: keys a query sees in the layers of `sliding_layers`, itself among them.
        sliding_layers: layers that see no further than the window, counted from 0.
        local_rope_base: base of the rotary frequencies in those layers; None: they turn as the others do.
        local_rope_scaling: how these frequencies are stretched.
        activation: the gate's function, gelu in its tanh form.
        mlp_bias: biases in the feed-forward.
        moe: experts in place of the feed-forward.
        per_layer_input: a second embedding with a part for each layer; None: there is none.
        layer_scale: each block's result is multiplied by a number of its own, which is not trained.
        norm_placement: norms before attention and feed-forward, after them (before the sum), or both.
        norm_offset: added to the norms' stored scales.
        final_norm_offset: the same of the last norm; None: as of the others.
        post_norm_eps: added to the mean square in norms after attention and feed-forward; None: as in the others.
        embed_norm: norm without scales on the embeddings.
        embed_scale: factor on the embeddings, rounded to their dtype.
        residual_scale: factor on what attention and feed-forward add.
        residual_dropout: dropout probability on what they add, in training mode only.
        logit_divisor: what the logits are divided by.
        final_softcap: bound that a tanh keeps the logits within.

    Raises:
        ConfigError: sizes that no decoder can have; every such problem is listed.
    """

    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    embed_dim: int
    head_dim: int
    intermediate_dim: int
    max_seq_len: int
    norm_eps: float = 1e-5
    rope_base: float = 10_000.0
    tie_word_embeddings: bool = False
    attn_dropout: float = 0.0
    rope_scaling: RopeScaling | None = None
    query_scaling: QueryScaling | None = None
    rotary_dim: int | None = None
    rotary_pairs: Literal["halves", "neighbours"] = "halves"
    nope_layers: tuple[int, ...] = ()
    attn_bias: Literal["none", "qkv", "out", "all"] = "none"
    qk_norm: Literal["none", "head", "width", "scaleless"] = "none"
    attn_scale: float | None = None
    attn_softcap: float | None = None
    attn_sinks: bool = False
    v_norm: bool = False
    full_attention: FullAttentionConfig | None = None
    shared_kv: SharedKVConfig | None = None
    attn_gate: bool = False
    attn_gate_apart: bool = False
    delta: GatedDeltaConfig | None = None
    conv: ShortConvConfig | None = None
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    local_rope_base: float | None = None
    local_rope_scaling: RopeScaling | None = None
    activation: Literal["silu", "gelu_tanh"] = "silu"
    mlp_bias: bool = False
    moe: MoEConfig | None = None
    per_layer_input: PerLayerInputConfig | None = None
    layer_scale: bool = False
    norm_placement: Literal["pre", "post", "both"] = "pre"
    norm_offset: float = 0.0
    final_norm_offset: float | None = None
    post_norm_eps: float | None = None
    embed_norm: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    residual_dropout: float = 0.0
    logit_divisor: float = 1.0
    final_softcap: float | None = None

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if not problems and self.num_parameters() > _MAX_PARAMETERS:
            problems.append(f"they make {self.num_parameters():.3g} parameters; one of them must be wrong")
        if problems:
            raise ConfigError("no decoder has these sizes:\n  " + "\n  ".join(problems))

    @property
    def rotary_channels(self) -> int:
        """Channels of a head that turn with the position."""
        return self.head_dim if self.rotary_dim is None else self.rotary_dim

    @property
    def full_rotary_channels(self) -> int:
        """Channels of a head that turn in layers without a window."""
        return self.rotary_channels if self.full_attention is None else self.full_attention.head_dim

    @property
    def delta_layers(self) -> tuple[int, ...]:
        """Layers that keep a state which grows old, in place of attention."""
        return () if self.delta is None else self.delta.layers

    @property
    def conv_layers(self) -> tuple[int, ...]:
        """Layers with a short convolution in place of attention."""
        return () if self.conv is None else self.conv.layers

    @property
    def state_layers(self) -> tuple[int, ...]:
        """Layers that go on from what they kept of earlier tokens, and cannot leave out one of them."""
        return (*self.delta_layers, *self.conv_layers)

    @property
    def num_attention_layers(self) -> int:
        """Layers that attend."""
        return self.num_layers - len(self.state_layers)

    @property
    def max_text_len(self) -> int:
        """Positions that a text may reach: those of training, or what its frequencies stretch to as texts grow."""
        if isinstance(self.rope_scaling, DynamicScaling):
            return max(
                self.max_seq_len, int(self.rope_scaling.factor * self.rope_scaling.original_max_seq_len)
            )
        return self.max_seq_len

    @property
    def num_own_kv_layers(self) -> int:
        """Layers, the first ones, that have keys and values of their own."""
        return self.num_layers - (0 if self.shared_kv is None else self.shared_kv.num_layers)

    def sizes_of(self, layer: int) -> LayerSizes:
        """Return the sizes of one layer, counted from 0."""
        full = None if layer in self.sliding_layers else self.full_attention
        sizes = LayerSizes(self.head_dim, self.num_kv_heads, self.intermediate_dim)
        if full is not None:
            sizes = LayerSizes(
                full.head_dim,
                full.num_kv_heads,
                self.intermediate_dim,
                has_values=not full.keys_as_values,
            )
        if self.shared_kv is None:
            return sizes
        if layer >= self.num_own_kv_layers:
            return sizes._replace(
                intermediate_dim=self.shared_kv.intermediate_dim, has_keys=False, has_values=False
            )
        return sizes._replace(lends_kv=layer in self.kv_lenders.values())

    @cached_property
    def kv_lenders(self) -> dict[bool, int]:
        """The layers whose keys and values later ones share: the one without a window by False, the other by True."""
        own = range(0 if self.shared_kv is None else self.num_own_kv_layers)
        return {layer in self.sliding_layers: layer for layer in own}

    def num_parameters(self) -> int:
        """Parameters of the whole model; a tied output matrix is counted once."""
        embedding = self.vocab_size * self.embed_dim
        norms_per_block = {"pre": 2, "post": 2, "both": 4}[self.norm_placement]
        norms = (norms_per_block * self.num_layers + 1) * self.embed_dim
        head = 0 if self.tie_word_embeddings else embedding
        attending = [self.sizes_of(layer) for layer in self._attention_layers]
        if self.qk_norm == "head":
            norms += sum(sizes.head_dim * (1 + sizes.has_keys) for sizes in attending)
        elif self.qk_norm == "width":
            norms += self.num_attention_layers * self.head_dim * (self.num_heads + self.num_kv_heads)
        norms += self.attn_sinks * self.num_attention_layers * self.num_heads
        if self.delta is not None:
            norms += len(self.delta.layers) * self.delta.num_other_parameters()
        if self.conv is not None:
            norms += len(self.conv.layers) * self.conv.num_other_parameters(self.embed_dim)
        if self.per_layer_input is not None:
            norms += self.per_layer_input.num_other_parameters(self.embed_dim, self.num_layers)
        if self.moe is not None:
            norms += self.num_layers * self.moe.num_other_parameters(self.embed_dim)
        blocks = self._num_block_parameters(None if self.moe is None else self.moe.num_experts)
        return embedding + blocks + norms + self._num_biases() + head

    def num_block_parameters(self) -> int:
        """Parameters of all matrices before the output that multiply a token: of experts, those it is sent to."""
        return self._num_block_parameters(None if self.moe is None else self.moe.experts_per_token)

    def _num_block_parameters(self, num_experts: int | None) -> int:
        num = 0
        for layer in self._attention_layers:
            sizes = self.sizes_of(layer)
            heads = self.num_heads * (2 + self.attn_gate) + sizes.num_kv_heads * (
                sizes.has_keys + sizes.has_values
            )
            num += self.embed_dim * sizes.head_dim * heads
        if self.delta is not None:
            num += len(self.delta.layers) * self.delta.num_matrix_parameters(self.embed_dim)
        if self.conv is not None:
            num += len(self.conv.layers) * self.conv.num_matrix_parameters(self.embed_dim)
        if self.per_layer_input is not None:
            num += self.per_layer_input.num_matrix_parameters(self.embed_dim, self.num_layers)
        for layer in range(self.num_layers):
            if self._has_feed_forward(layer):
                num += 3 * self.embed_dim * self.sizes_of(layer).intermediate_dim
            if self.moe is not None and num_experts is not None and layer not in self.moe.dense_layers:
                num += self.moe.num_parameters(self.embed_dim, num_experts)
        return num

    @property
    def _attention_layers(self) -> list[int]:
        return [layer for layer in range(self.num_layers) if layer not in self.state_layers]

    def _has_feed_forward(self, layer: int) -> bool:
        return self.moe is None or self.moe.is_beside or layer in self.moe.dense_layers

    def _num_biases(self) -> int:
        num = 0
        for layer in range(self.num_layers):
            sizes = self.sizes_of(layer)
            if self.attn_bias != "none" and layer not in self.state_layers:
                own = sizes.num_kv_heads * (sizes.has_keys + sizes.has_values)
                own += self.num_heads * (1 + (self.attn_gate and not self.attn_gate_apart))
                num += sizes.head_dim * own * (self.attn_bias != "out")
                num += self.embed_dim * (self.attn_bias != "qkv")
            if self.mlp_bias and self._has_feed_forward(layer):
                num += 2 * sizes.intermediate_dim + self.embed_dim
            if self.moe is not None and layer not in self.moe.dense_layers:
                num += self.moe.num_biases(self.embed_dim)
        return num

    def _problems(self) -> Iterator[str]:
        sizes = {
            "vocab_size": self.vocab_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "embed_dim": self.embed_dim,
            "head_dim": self.head_dim,
            "intermediate_dim": self.intermediate_dim,
            "max_seq_len": self.max_seq_len,
        }
        if self.sliding_window is not None:
            sizes["sliding_window"] = self.sliding_window
        too_small = [f"{name} is {size}; it must be at least 1" for name, size in sizes.items() if size < 1]
        yield from too_small
        if not too_small and self.num_heads % self.num_kv_heads:
            yield f"num_heads is {self.num_heads}, not a multiple of num_kv_heads {self.num_kv_heads}"
        yield from self._problems_of_kinds()
        if self.rotary_channels % 2 or not 0 < self.rotary_channels <= self.head_dim:
            name = "head_dim" if self.rotary_dim is None else "rotary_dim"
            yield (
                f"{name} is {self.rotary_channels}; rotary positions need an even number of channels, "
                f"at most head_dim {self.head_dim}"
            )
        else:
            scalings = (
                (self.rope_scaling, self.full_rotary_channels),
                (self.local_rope_scaling, self.rotary_channels),
            )
            for scaling, channels in scalings:
                yield from () if scaling is None else scaling.problems(channels)
        if self.local_rope_scaling is not None and self.local_rope_base is None:
            yield "local_rope_scaling needs a local_rope_base"
        if self.query_scaling is not None:
            for name, value in vars(self.query_scaling).items():
                if not 0 < value < math.inf:
                    yield f"query_scaling.{name} is {value}; it must be above 0 and finite"
        if self.num_layers > _MAX_LAYERS:
            yield f"num_layers is {self.num_layers}; more than {_MAX_LAYERS} are not built"
        yield from self._problems_of_layers()
        # Written so that NaN fails as well.
        for name in ("norm_eps", "post_norm_eps"):
            if (eps := getattr(self, name)) is not None and not 0 <= eps < 1:
                yield f"{name} is {eps}; it must be at least 0 and below 1"
        positive = {
            "rope_base": self.rope_base,
            "local_rope_base": self.local_rope_base,
            "attn_scale": self.attn_scale,
            "attn_softcap": self.attn_softcap,
            "final_softcap": self.final_softcap,
            "logit_divisor": self.logit_divisor,
            "embed_scale": self.embed_scale,
            "residual_scale": self.residual_scale,
        }
        for name, value in positive.items():
            if value is not None and not 0 < value < math.inf:
                yield f"{name} is {value}; it must be above 0 and finite"
        for name in ("attn_dropout", "residual_dropout"):
            if not 0 <= (share := getattr(self, name)) < 1:
                yield f"{name} is {share}; it must be at least 0 and below 1"
        if self.moe is not None:
            yield from self.moe.problems()
            if self.num_layers * self.moe.num_experts > _MAX_EXPERTS:
                yield (
                    f"num_layers {self.num_layers} times num_experts {self.moe.num_experts} is more than "
                    f"{_MAX_EXPERTS}; so many experts are not built"
                )

    def _problems_of_kinds(self) -> Iterator[str]:
        """Yield what is wrong with sizes that some layers have and others have not."""
        if full := self.full_attention:
            if full.head_dim < 2 or full.head_dim % 2:
                yield f"full_attention.head_dim is {full.head_dim}; it must be even and above 0"
            if full.num_kv_heads < 1 or self.num_heads % full.num_kv_heads:
                yield (
                    f"num_heads is {self.num_heads}, not a multiple of full_attention.num_kv_heads "
                    f"{full.num_kv_heads}"
                )
            if self.qk_norm == "width" or self.rotary_dim is not None or self.local_rope_base is None:
                yield "full_attention needs a local_rope_base, no rotary_dim, and norms over each head or none"
        if self.attn_gate_apart and not self.attn_gate:
            yield "attn_gate_apart needs attn_gate"
        if self.per_layer_input is not None:
            yield from self.per_layer_input.problems(self.vocab_size)
        if self.moe is not None and self.moe.is_beside and self.moe.dense_layers:
            yield "experts beside the feed-forward are in every layer, and dense_layers names some without"
        if (shared := self.shared_kv) is None:
            return
        if not 1 <= shared.num_layers < self.num_layers:
            yield f"shared_kv.num_layers is {shared.num_layers}; it must be at least 1 and below {self.num_layers}"
        elif self.num_layers <= _MAX_LAYERS:
            for layer in range(self.num_own_kv_layers, self.num_layers):
                if (is_sliding := layer in self.sliding_layers) not in self.kv_lenders:
                    kind = "with a window" if is_sliding else "without a window"
                    yield f"layer {layer} shares the keys of an earlier layer {kind}, and there is none"
                    break
        if shared.intermediate_dim < 1:
            yield f"shared_kv.intermediate_dim is {shared.intermediate_dim}; it must be at least 1"
        if self.delta is not None:
            yield "shared_kv and delta: layers with a state have no keys to share"

    def _problems_of_layers(self) -> Iterator[str]:
        lists = {"nope_layers": self.nope_layers, "sliding_layers": self.sliding_layers}
        if self.moe is not None:
            lists["dense_layers"] = self.moe.dense_layers
        if self.delta is not None:
            lists["delta layers"] = self.delta.layers
            yield from self.delta.problems()
        if self.conv is not None:
            lists["conv layers"] = self.conv.layers
            yield from self.conv.problems()
        kinds = {"delta layer": self.delta_layers, "conv layer": self.conv_layers}
        for (first, left), (second, right) in combinations(
            [*kinds.items(), ("layer with a window", self.sliding_layers)], 2
        ):
            if both := sorted({*left} & {*right}):
                yield f"layer {both[0]} is both a {first} and a {second}"
        for name, layers in lists.items():
            if outside := [layer for layer in layers if not 0 <= layer < self.num_layers]:
                yield f"{name} names layer {outside[0]}; layers count from 0 to {self.num_layers - 1}"
        if self.sliding_layers and self.sliding_window is None:
            yield "sliding_layers needs a sliding_window"
