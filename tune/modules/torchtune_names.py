"""torchtune's names in `torchtune.modules`, and what stands for them here."""

from __future__ import annotations

_NO_IMAGES = "models of images are not here"

HERE = {
    **{
        name: f"tune.modules.torchtune_layers.{name}"
        for name in (
            "MultiHeadAttention",
            "RotaryPositionalEmbeddings",
            "TransformerSelfAttentionLayer",
            "create_block_causal_mask",
            "local_kv_cache",
        )
    },
    "packed_block_causal_mask": "tune.modules.torchtune_layers.create_block_causal_mask",
}

GONE = {
    **dict.fromkeys(
        (
            "TanhGate",
            "TransformerCrossAttentionLayer",
            "VectorQuantizedEmbeddings",
            "VisionRotaryPositionalEmbeddings",
            "VisionTransformer",
        ),
        _NO_IMAGES,
    ),
    **dict.fromkeys(("LayerDropout", "prepare_layer_dropout"), "dropping layers is not here"),
    "delete_kv_caches": "use model.delete_caches()",
    "disable_kv_cache": "call the model outside local_kv_cache(model, ...)",
    "Fp32LayerNorm": "use torch.nn.LayerNorm on x.float()",
    "FrozenNF4Linear": "use tune.modules.peft.FrozenLinear(in_dim, out_dim, quantize_base=True)",
    "TiedLinear": "a decoder ties its output with DecoderConfig(tie_word_embeddings=True)",
    "reparametrize_as_dtype_state_dict_post_hook": "tune.checkpoints.save_model writes matrices unquantised",
}
