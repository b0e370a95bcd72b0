"""How files name a model's weights: most Hugging Face checkpoints, Meta's, and torchtune's.

Files keep the channels of a head that turn together in two orders: as halves of the head, as our rotation expects
them, or as neighbours.
"""

from __future__ import annotations

from torch import Tensor

from tune.modules import DecoderConfig, Layout, WeightRule

_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
_FEED_FORWARD = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}

# Experts as newer checkpoints have them: the matrices of all in one tensor, gates above those they open.
STACKED_EXPERTS = {
    "mlp.experts.{}.w1.weight": "mlp.experts.gate_up_proj",
    "mlp.experts.{}.w2.weight": "mlp.experts.down_proj",
    "mlp.experts.{}.w3.weight": "mlp.experts.gate_up_proj",
}


def hf_layout(names: dict[str, str] | None = None) -> Layout:
    """Return the layout of Hugging Face checkpoints.

    Args:
        names: names of tensors that differ from the usual ones, ours to theirs: of our parameters "layers.{}.NAME"
            (both sides without "layers.{}."), biases and norms included. Every parameter that some family has is
            known; what a model lacks is left out when it is read or written.
    """
    usual = {
        "sa_norm.scale": "input_layernorm.weight",
        **{f"attn.{ours}.weight": f"self_attn.{theirs}.weight" for ours, theirs in _ATTENTION.items()},
        **{f"attn.{ours}.bias": f"self_attn.{theirs}.bias" for ours, theirs in _ATTENTION.items()},
        "attn.q_norm.scale": "self_attn.q_norm.weight",
        "attn.k_norm.scale": "self_attn.k_norm.weight",
        "mlp_norm.scale": "post_attention_layernorm.weight",
        **{f"mlp.{ours}.weight": f"mlp.{theirs}.weight" for ours, theirs in _FEED_FORWARD.items()},
        **{f"mlp.{ours}.bias": f"mlp.{theirs}.bias" for ours, theirs in _FEED_FORWARD.items()},
    }
    in_blocks = {**usual, **(names or {})}
    return Layout(
        name="Hugging Face",
        rules=(
            WeightRule("tok_embeddings.weight", "model.embed_tokens.weight"),
            *(
                WeightRule(f"layers.{{}}.{ours}", f"model.layers.{{}}.{theirs}")
                for ours, theirs in in_blocks.items()
            ),
            WeightRule("norm.scale", "model.norm.weight"),
            WeightRule("output.weight", "lm_head.weight"),
        ),
        ignored=("model.layers.*.self_attn.rotary_emb.inv_freq",),
        tied_output="lm_head.weight",
    )


def torchtune_layout(hf: Layout, names: dict[str, str] | None = None, *, paired: bool) -> Layout:
    """Return torchtune's layout of a family.

    Args:
        hf: the family's Hugging Face layout, which says what parameters there are.
        names: those that torchtune calls differently, ours to theirs.
        paired: its queries and keys keep the channels that turn together as neighbours.
    """
    rules = []
    for rule in hf.rules:
        theirs = (names or {}).get(rule.ours, rule.ours)
        is_turned = rule.ours.rpartition(".")[0].endswith(("attn.q_proj", "attn.k_proj"))  # biases as well
        rules.append(
            paired_rule(rule.ours, theirs) if paired and is_turned else WeightRule(rule.ours, theirs)
        )
    return Layout("torchtune", tuple(rules), tied_output="output.weight")


def halves_from_pairs(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's rows from pairs (2i, 2i + 1) to halves (i, i + h_d / 2), as our rotation expects."""
    pairs = weight.view(num_heads, weight.shape[0] // num_heads // 2, 2, -1)  # [n, h_d / 2, 2, d]
    return pairs.transpose(1, 2).reshape(weight.shape)


def pairs_from_halves(weight: Tensor, num_heads: int) -> Tensor:
    """Reorder each head's rows from halves to pairs, the inverse of `halves_from_pairs`."""
    halves = weight.view(num_heads, 2, weight.shape[0] // num_heads // 2, -1)  # [n, 2, h_d / 2, d]
    return halves.transpose(1, 2).reshape(weight.shape)


def paired_rule(ours: str, theirs: str) -> WeightRule:
    """Return the rule of a query or key matrix, or of its bias, that a file keeps in pairs."""
    is_query = "q_proj" in ours

    def num_heads(config: DecoderConfig) -> int:
        return config.num_heads if is_query else config.num_kv_heads

    return WeightRule(
        ours,
        theirs,
        to_ours=lambda weight, config: halves_from_pairs(weight, num_heads(config)),
        to_theirs=lambda weight, config: pairs_from_halves(weight, num_heads(config)),
    )


META_LAYOUT = Layout(
    name="Meta",
    rules=(
        WeightRule("tok_embeddings.weight", "tok_embeddings.weight"),
        WeightRule("layers.{}.sa_norm.scale", "layers.{}.attention_norm.weight"),
        paired_rule("layers.{}.attn.q_proj.weight", "layers.{}.attention.wq.weight"),
        paired_rule("layers.{}.attn.k_proj.weight", "layers.{}.attention.wk.weight"),
        WeightRule("layers.{}.attn.v_proj.weight", "layers.{}.attention.wv.weight"),
        WeightRule("layers.{}.attn.output_proj.weight", "layers.{}.attention.wo.weight"),
        WeightRule("layers.{}.mlp_norm.scale", "layers.{}.ffn_norm.weight"),
        WeightRule("layers.{}.mlp.w1.weight", "layers.{}.feed_forward.w1.weight"),
        WeightRule("layers.{}.mlp.w2.weight", "layers.{}.feed_forward.w2.weight"),
        WeightRule("layers.{}.mlp.w3.weight", "layers.{}.feed_forward.w3.weight"),
        WeightRule("norm.scale", "norm.weight"),
        WeightRule("output.weight", "output.weight"),
    ),
    ignored=("rope.freqs",),
    tied_output="output.weight",
)
