"""What torchtune's users import and name in configs: every builder by its name there, with its arguments there."""

from __future__ import annotations

import importlib

import pytest

from tune.config.component_check import resolve_component
from tune.config.slots import MODEL, TOKENIZER, Slot

# Sizes of each module, for which there are three builders: plain, with adapters, with adapters beside 4 bits.
IN_THREE_FORMS = {
    "code_llama2": "code_llama2_7b code_llama2_13b code_llama2_70b",
    "gemma": "gemma_2b gemma_7b",
    "gemma2": "gemma2_2b gemma2_9b gemma2_27b",
    "llama2": "llama2_7b llama2_13b llama2_70b",
    "llama3": "llama3_8b llama3_70b",
    "llama3_1": "llama3_1_8b llama3_1_70b llama3_1_405b",
    "llama3_2": "llama3_2_1b llama3_2_3b",
    "llama3_3": "llama3_3_70b",
    "mistral": "mistral_7b",
    "phi3": "phi3_mini",
    "phi4": "phi4_14b",
}
# Those of which torchtune has no 4-bit form.
IN_TWO_FORMS = {
    "qwen2": "qwen2_0_5b qwen2_1_5b qwen2_7b",
    "qwen2_5": "qwen2_5_0_5b qwen2_5_1_5b_base qwen2_5_1_5b_instruct qwen2_5_3b qwen2_5_7b_base qwen2_5_7b_instruct "
    "qwen2_5_14b_base qwen2_5_14b_instruct qwen2_5_32b_base qwen2_5_32b_instruct qwen2_5_72b_base "
    "qwen2_5_72b_instruct",
    "qwen3": "qwen3_0_6b_base qwen3_0_6b_instruct qwen3_1_7b_base qwen3_1_7b_instruct qwen3_4b_base qwen3_4b_instruct "
    "qwen3_8b_base qwen3_8b_instruct qwen3_14b_base qwen3_14b_instruct qwen3_32b qwen3_moe_30b_a3b_base "
    "qwen3_moe_30b_a3b_instruct qwen3_moe_235b_a22b",
}
SIZES = "vocab_size num_layers num_heads num_kv_heads embed_dim max_seq_len attn_dropout norm_eps"
ROTARY = f"{SIZES} intermediate_dim rope_base"
# Builders in any size, and those with adapters, by what they take; `lora_` ones take what adapters need, too.
BY_ARGUMENT = {
    "llama2.llama2": ROTARY,
    "llama3.llama3": ROTARY,
    "llama3_1.llama3_1": f"{ROTARY} scale_factor",
    "llama3_2.llama3_2": f"{ROTARY} scale_factor tie_word_embeddings",
    "mistral.mistral": ROTARY,
    "phi3.phi3": ROTARY,
    "gemma.gemma": f"{ROTARY} head_dim",
    "gemma2.gemma2": f"{ROTARY} head_dim hidden_capping_value final_capping_value sliding_window_size "
    "query_pre_attn_scalar",
    "qwen2.qwen2": f"{ROTARY} tie_word_embeddings",
    "qwen3.qwen3_moe": f"{ROTARY} head_dim tie_word_embeddings moe_intermediate_size num_experts num_experts_per_tok",
}
LORA = "lora_attn_modules apply_lora_to_mlp apply_lora_to_output lora_rank lora_alpha lora_dropout use_dora"
ADAPTERS = f"{LORA} quantize_base"
TOKENIZERS = {
    "gemma.gemma_tokenizer": "path max_seq_len prompt_template",
    "gemma.GemmaTokenizer": "path max_seq_len prompt_template",
    "gemma2.gemma_tokenizer": "path max_seq_len prompt_template",
    "gemma2.GemmaTokenizer": "path max_seq_len prompt_template",
    "llama2.llama2_tokenizer": "path max_seq_len prompt_template",
    "llama2.Llama2Tokenizer": "path max_seq_len prompt_template",
    "llama3.llama3_tokenizer": "path special_tokens_path max_seq_len prompt_template",
    "llama3.Llama3Tokenizer": "path max_seq_len prompt_template",
    "mistral.mistral_tokenizer": "path max_seq_len prompt_template",
    "mistral.MistralTokenizer": "path max_seq_len prompt_template",
    "phi3.phi3_mini_tokenizer": "path special_tokens_path max_seq_len prompt_template",
    "phi3.Phi3MiniTokenizer": "path max_seq_len prompt_template",
    "phi4.phi4_tokenizer": "vocab_path merges_path special_tokens_path max_seq_len prompt_template",
    "qwen2.qwen2_tokenizer": "path merges_file special_tokens_path max_seq_len prompt_template",
    "qwen2.Qwen2Tokenizer": "path merges_file max_seq_len prompt_template",
    "qwen2_5.qwen2_5_tokenizer": "path merges_file special_tokens_path max_seq_len prompt_template",
    "qwen3.qwen3_tokenizer": "path merges_file special_tokens_path max_seq_len prompt_template",
}
MODELS = {
    **{
        f"{module}.{prefix}{name}": ADAPTERS if prefix else ""
        for table, prefixes in ((IN_THREE_FORMS, ("", "lora_", "qlora_")), (IN_TWO_FORMS, ("", "lora_")))
        for module, names in table.items()
        for name in names.split()
        for prefix in prefixes
    },
    **BY_ARGUMENT,
    **{path.replace(".", ".lora_"): f"{arguments} {ADAPTERS}" for path, arguments in BY_ARGUMENT.items()},
}


@pytest.mark.parametrize(("table", "slot"), [(MODELS, MODEL), (TOKENIZERS, TOKENIZER)])
def test_every_name_is_there_with_its_arguments(table: dict[str, str], slot: Slot) -> None:
    for path, arguments in table.items():
        resolved = resolve_component(f"torchtune.models.{path}", slot)
        assert not resolved.errors, path
        assert resolved.path == f"tune.models.{path}"
        assert set(arguments.split()) <= set(resolved.signature.parameters), path
        module, _, name = path.partition(".")
        assert callable(getattr(importlib.import_module(f"tune.models.{module}"), name))
