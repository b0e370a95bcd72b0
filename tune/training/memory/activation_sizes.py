"""What a forward pass keeps for the backward pass, predicted from the modules and the sizes of a micro-batch.

Letters: d width, h head width, Hq and Hkv query and key heads, f feed-forward width, e bytes of a number. With every
weight trained in one dtype a fused block keeps 4 d + 2 Hq h + 2 Hkv h + 3 f numbers per token. Ours keeps 4 f: without
a fused kernel the gate is kept before and after its function. Norms on a CPU are not fused and keep fp32. What
else is kept follows below, module by module, as torch's autograd keeps it; a test compares it with what that does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from tune.modules import TransformerDecoder
from tune.modules.attention import SelfAttention
from tune.modules.decoder import DecoderBlock
from tune.modules.feed_forward import FeedForward
from tune.modules.moe import MixtureOfExperts
from tune.modules.norm import RMSNorm
from tune.modules.peft.frozen import FrozenLinear
from tune.modules.peft.lora import LoRALinear

__all__ = ["Adapters", "MicroBatch", "block_bytes", "trunk_bytes"]


@dataclass(frozen=True)
class Adapters:
    """Adapters that a model without any would have: what LoRA would need in place of what there is."""

    rank: int = 8
    modules: tuple[str, ...] = ("q_proj", "v_proj")  # as `LoRAConfig` has it


@dataclass(frozen=True)
class MicroBatch:
    """What goes through the model at once, and how.

    Args:
        batch_size, seq_len: rows and the tokens of the longest.
        compute_bytes: of a number in matrix products.
        stream_bytes: of a number in the residual stream: more than `compute_bytes` under autocast.
        is_cuda: kernels are those of a GPU.
        packed: rows hold several documents, so a mask is given.
        sliding_window: keys that a query sees in sliding layers; None: there are none.
        adapters: judge a model without adapters as if it had these; None: as it is.
    """

    batch_size: int
    seq_len: int
    compute_bytes: int
    stream_bytes: int
    is_cuda: bool
    packed: bool = False
    sliding_window: int | None = None
    adapters: Adapters | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens, padding among them."""
        return self.batch_size * self.seq_len

    def trains(self, module: nn.Module) -> bool:
        """Whether a plain module's weights get gradients."""
        return self.adapters is None and any(p.requires_grad for p in module.parameters(recurse=False))


@dataclass
class _Kept:
    """Bytes per token; what is kept twice under one name is one tensor."""

    batch: MicroBatch
    shared: dict[str, float] = field(default_factory=dict)
    total: float = 0.0

    def add(self, num_bytes: float) -> None:
        self.total += num_bytes

    def share(self, name: str, num_bytes: float) -> None:
        self.shared[name] = max(num_bytes, self.shared.get(name, 0.0))

    def norm(self, norm: RMSNorm | None, width: int, input_bytes: int, count: int = 1) -> None:
        """A norm over `count` vectors per token: its input and their lengths."""
        if norm is None:
            return
        # With an offset, or a scale that is wider than its input (autocast), it is fed an fp32 copy; without a fused
        # kernel it makes one, and keeps the normed one, too.
        wide = bool(norm.offset) or input_bytes < self.batch.stream_bytes or not self.batch.is_cuda
        self.add(count * (width * (4 if wide else input_bytes) + 4))
        if not self.batch.is_cuda and self.batch.trains(norm):
            self.add(4 * count * width)

    def linear(self, module: nn.Module, name: str, input_name: str, input_bytes: int) -> None:
        """A matrix: what it keeps of its input (shared with others that read it), and what its adapter keeps."""
        e = self.batch.compute_bytes
        if isinstance(module, LoRALinear):
            self._adapted(module, input_name, input_bytes)
        elif isinstance(module, nn.Linear):
            i = module.in_features
            adapters = self.batch.adapters
            if adapters is not None:
                if name in adapters.modules:
                    self.share(input_name, input_bytes * i)
                    self.add(e * adapters.rank)
            elif self.batch.trains(module):
                if input_bytes == e:
                    self.share(input_name, e * i)
                else:
                    self.add(e * i)  # autocast: each matrix makes a copy of its own
        else:
            assert isinstance(module, FrozenLinear), "a block's matrices are of these kinds"

    def _adapted(self, module: LoRALinear, input_name: str, input_bytes: int) -> None:
        e, i, o = self.batch.compute_bytes, module.in_dim, module.out_dim
        self.add(e * module.rank)
        drops = module.dropout > 0.0
        if drops:
            self.add(i)  # which were dropped, a byte each
        if drops and module.use_dora:
            self.add(e * i)  # the input with the dropped ones gone
        else:
            self.share(input_name, input_bytes * i)
        if module.use_dora:
            self.add(e * o)

    def per_token(self) -> float:
        return self.total + sum(self.shared.values())


def block_bytes(block: DecoderBlock, batch: MicroBatch) -> float:
    """Return the bytes that one block keeps for the backward pass of one micro-batch."""
    kept = _Kept(batch)
    attn = block.attn
    width = _in_dim(attn.q_proj)
    # The residual stream is the norms' input, and theirs is the matrices': in the same dtype.
    kept.norm(block.sa_norm, width, batch.stream_bytes)
    for name in ("q_proj", "k_proj", "v_proj"):
        kept.linear(getattr(attn, name), name, "attn_in", batch.stream_bytes)
    _attention(kept, block, attn)
    kept.norm(block.sa_post_norm, width, batch.compute_bytes)
    kept.norm(block.mlp_norm, width, batch.stream_bytes)
    if isinstance(block.mlp, MixtureOfExperts):
        _experts(kept, block.mlp, width)
    else:
        _feed_forward(kept, block.mlp, 1, "mlp_in", batch.stream_bytes)
    kept.norm(block.mlp_post_norm, width, batch.compute_bytes)
    return kept.per_token() * batch.num_tokens


def trunk_bytes(model: TransformerDecoder, batch: MicroBatch) -> float:
    """Return the bytes kept outside the blocks: token ids, angles, masks, the last norm."""
    config = model.config
    kept = _Kept(batch)
    kept.norm(model.norm, config.embed_dim, batch.stream_bytes)
    kept.add(8)  # token ids, int64
    angles = 4 * config.rotary_channels * (1 if model.local_rope is None else 2)
    # Positions counted from 0 are the same in each row; packed documents begin anew.
    kept.add(angles if batch.packed else angles / batch.batch_size)
    if batch.packed:
        kept.add(batch.seq_len)
    return kept.per_token() * batch.num_tokens


def _attention(kept: _Kept, block: DecoderBlock, attn: SelfAttention) -> None:
    batch, e, s = kept.batch, kept.batch.compute_bytes, kept.batch.seq_len
    q, kv = attn.num_heads * attn.head_dim, attn.num_kv_heads * attn.head_dim
    if attn.qk_norm == "head":
        kept.norm(attn.q_norm, attn.head_dim, e, attn.num_heads)
        kept.norm(attn.k_norm, attn.head_dim, e, attn.num_kv_heads)
    elif attn.qk_norm == "width":
        kept.norm(attn.q_norm, q, e)
        kept.norm(attn.k_norm, kv, e)
    scores = attn.num_heads * s  # per token
    if attn.softcap is not None:
        # Keys and values are repeated for each query head; scores before and after, the latter in fp32 as well.
        kept.add(3 * e * q + (2 * e + 4) * scores)
        if attn.attn_dropout:
            kept.add((e + 1) * scores)
        kept.linear(attn.output_proj, "output_proj", "attn_out", e)
        return
    if attn.attn_dropout and not batch.is_cuda:
        # The one case that no fused kernel of a CPU takes: everything in fp32, heads repeated.
        kept.add(3 * 4 * q + 3 * 4 * scores)
        kept.linear(attn.output_proj, "output_proj", "attn_out", e)
        return
    is_narrow = block.is_sliding and batch.sliding_window is not None and s > batch.sliding_window
    has_mask = batch.packed or is_narrow
    # On a GPU, `SelfAttention` repeats keys and values where there is a mask.
    kept.add(e * q + 2 * e * (q if has_mask and batch.is_cuda else kv) + 4 * attn.num_heads)
    kept.share("attn_out", e * q)
    if has_mask:
        # The mask as numbers to add, made anew in each layer; a window's is the same for all rows.
        kept.add(e * s if batch.packed else e * s / batch.batch_size)
    kept.linear(attn.output_proj, "output_proj", "attn_out", e)


def _feed_forward(kept: _Kept, mlp: FeedForward, copies: float, input_name: str, input_bytes: int) -> None:
    """A feed-forward that each token passes `copies` times."""
    one = _Kept(kept.batch)
    one.linear(mlp.w1, "w1", input_name, input_bytes)
    one.linear(mlp.w3, "w3", input_name, input_bytes)
    f = _in_dim(mlp.w2)
    one.add(
        3 * kept.batch.compute_bytes * f
    )  # the gate before and after its function, and what it multiplies
    one.linear(mlp.w2, "w2", "product", kept.batch.compute_bytes)
    kept.add(copies * one.per_token())


def _experts(kept: _Kept, moe: MixtureOfExperts, width: int) -> None:
    batch, e, k = kept.batch, kept.batch.compute_bytes, moe.experts_per_token
    kept.linear(moe.router, "router", "mlp_in", batch.stream_bytes)
    # Probabilities of all experts; of the chosen ones number, place, place back, and weight in fp32 and in e bytes.
    kept.add(4 * len(moe.experts) + (3 * 8 + 4 + e) * k + 4)
    kept.add(e * k * width)  # what the experts said, before it is added up
    expert = moe.experts[0]
    assert isinstance(expert, FeedForward)
    _feed_forward(kept, expert, k, "rows", batch.stream_bytes)


def _in_dim(module: nn.Module) -> int:
    return module.in_dim if isinstance(module, FrozenLinear) else int(module.in_features)  # type: ignore[arg-type]
