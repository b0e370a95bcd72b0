"""Fields of Hugging Face's config.json that do not change what a model computes in one forward pass."""

from __future__ import annotations

HARMLESS_FIELDS = (
    # bookkeeping
    "_name_or_path",
    "_commit_hash",
    "architectures",
    "model_type",
    "transformers_version",
    "is_llama_config",
    "transformers.js_config",
    "unsloth_fixed",
    "unsloth_version",
    "auto_map",  # the repository's own code, which a known architecture does not need
    # how transformers runs it, or in what precision it was stored
    "torch_dtype",
    "dtype",
    "use_cache",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "attn_implementation",
    "pretraining_tp",  # the same product in slices
    "tp_plan",
    "torchscript",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "use_return_dict",
    "chunk_size_feed_forward",
    # training from scratch, and heads other than the language model's
    "initializer_range",
    "id2label",
    "label2id",
    "problem_type",
    "is_decoder",
    "is_encoder_decoder",
    # token ids and generation: the tokenizer's and the generator's business
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "max_length",
    "temperature",
    "top_p",
    "top_k",
    "do_sample",
    "max_sequence_length",  # Llama 2's duplicate of max_position_embeddings
)
