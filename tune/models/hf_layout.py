"""Names that most Hugging Face decoders share: a family takes these rules, and changes what it names differently."""

from __future__ import annotations

from tune.modules import Layout, WeightRule

_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
_FEED_FORWARD = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def hf_layout(
    names: dict[str, str] | None = None, *, prefix: str = "model.", ignored: tuple[str, ...] = ()
) -> Layout:
    """Return the layout of Hugging Face checkpoints.

    Args:
        names: names of tensors that differ from the usual ones, ours to theirs: of our parameters "layers.{}.NAME"
            (both sides without "layers.{}."), biases and norms included. Every parameter that some family has is
            known; what a model lacks is left out when it is read or written.
        prefix: before every name but the output matrix's.
        ignored: further patterns of tensor names that carry nothing a model needs.
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
            WeightRule("tok_embeddings.weight", f"{prefix}embed_tokens.weight"),
            *(
                WeightRule(f"layers.{{}}.{ours}", f"{prefix}layers.{{}}.{theirs}")
                for ours, theirs in in_blocks.items()
            ),
            WeightRule("norm.scale", f"{prefix}norm.weight"),
            WeightRule("output.weight", "lm_head.weight"),
        ),
        ignored=(f"{prefix}layers.*.self_attn.rotary_emb.inv_freq", *ignored),
        tied_output="lm_head.weight",
    )
