"""Every public name of torchtune 0.6.1 in these modules is found, or its absence says what to use."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs" / "from_torchtune.md"
PUBLIC = {
    "training": """get_act_offloading_ctx_manager prepare_mha_for_tp apply_selective_activation_checkpointing get_dtype
        set_default_dtype validate_expected_param_dtype FullModelHFCheckpointer FullModelMetaCheckpointer
        DistributedCheckpointer FullModelTorchTuneCheckpointer ModelType Checkpointer update_state_dict_for_classifier
        ADAPTER_CONFIG ADAPTER_KEY EPOCHS_KEY MAX_STEPS_KEY MODEL_KEY OPT_KEY RNG_KEY SEED_KEY STEPS_KEY
        TOTAL_EPOCHS_KEY get_quantizer_mode get_cosine_schedule_with_warmup get_distributed_backend get_lr
        cleanup_before_training create_optim_in_bwd_wrapper get_memory_stats log_memory_stats
        OptimizerInBackwardWrapper register_optim_in_bwd_hooks set_activation_checkpointing init_distributed
        is_distributed get_world_size_and_rank set_torch_num_threads shard_model get_shard_conditions
        validate_no_params_on_meta_device gather_cpu_state_dict get_full_optimizer_state_dict
        load_from_full_model_state_dict load_from_full_optimizer_state_dict set_seed get_unmasked_sequence_lengths
        DEFAULT_PROFILE_DIR DEFAULT_PROFILER_ACTIVITIES DEFAULT_SCHEDULE DEFAULT_TRACE_OPTS DummyProfiler PROFILER_KEY
        setup_torch_profiler compile_loss compile_model NoOpManager OffloadActivations FormattedCheckpointFiles
        scale_grads disable_dropout DATALOADER_KEY""",
    "modules": """MultiHeadAttention TanhGate FeedForward FrozenNF4Linear KVCache RotaryPositionalEmbeddings
        VisionRotaryPositionalEmbeddings VectorQuantizedEmbeddings RMSNorm TiedLinear Fp32LayerNorm VisionTransformer
        TransformerDecoder TransformerSelfAttentionLayer TransformerCrossAttentionLayer
        reparametrize_as_dtype_state_dict_post_hook create_block_causal_mask packed_block_causal_mask local_kv_cache
        delete_kv_caches disable_kv_cache LayerDropout prepare_layer_dropout""",
    "modules.peft": """AdapterModule DoRALinear LoRALinear QATLoRALinear get_adapter_params set_trainable_params
        validate_missing_and_unexpected_for_lora disable_adapter get_adapter_state_dict get_merged_lora_ckpt
        get_lora_module_names""",
    "data": """CROSS_ENTROPY_IGNORE_IDX GrammarErrorCorrectionTemplate SummarizeTemplate OpenAIToMessages
        ShareGPTToMessages AlpacaToMessages truncate Message validate_messages Role format_content_with_images
        PromptTemplateInterface PromptTemplate InputOutputToMessages ChosenRejectedToMessages QuestionAnswerTemplate
        ChatMLTemplate padded_collate_sft padded_collate_dpo left_pad_sequence padded_collate
        padded_collate_tiled_images_and_mask padded_collate_packed load_image""",
    "datasets": """alpaca_dataset alpaca_cleaned_dataset grammar_dataset samsum_dataset stack_exchange_paired_dataset
        slimorca_dataset instruct_dataset preference_dataset chat_dataset text_completion_dataset
        TextCompletionDataset cnn_dailymail_articles_dataset PackedDataset ConcatDataset wikitext_dataset
        PreferenceDataset SFTDataset hh_rlhf_helpful_dataset multimodal""",
}


def tables(module: str) -> tuple[dict[str, str], dict[str, str]]:
    names = importlib.import_module(f"tune.{module}.torchtune_names")
    return getattr(names, "HERE", {}), names.GONE


@pytest.mark.parametrize("module", PUBLIC)
def test_each_name_is_found_or_explained(module: str) -> None:
    door = importlib.import_module(f"tune.{module}")
    here, gone = tables(module)
    for name in PUBLIC[module].split():
        if name in gone:
            assert name not in here
            with pytest.raises(AttributeError, match=re.escape(f"{name!r}: {gone[name]}")):
                getattr(door, name)
        else:
            assert getattr(door, name) is not None
    assert set(here) | set(gone) <= set(PUBLIC[module].split())
    for name, path in here.items():
        home, _, leaf = path.rpartition(".")
        assert getattr(door, name) is getattr(importlib.import_module(home), leaf)


@pytest.mark.parametrize("module", PUBLIC)
def test_a_typo_stays_an_error(module: str) -> None:
    door = importlib.import_module(f"tune.{module}")
    with pytest.raises(AttributeError, match=r"has no attribute 'set_sed'$"):
        _ = door.set_sed


def test_names_are_found_when_they_are_asked_for() -> None:
    script = (
        "import sys, tune.modules, tune.modules.peft, tune.data, tune.datasets\n"
        "late = ('torchtune_layers', 'torchtune_functions')\n"
        "assert not [name for name in sys.modules if name.endswith(late)]\n"
        "from tune.modules import local_kv_cache\n"
        "assert 'tune.modules.torchtune_layers' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("module", PUBLIC)
def test_the_page_for_newcomers_names_what_is_here(module: str) -> None:
    text = DOCS.read_text()
    for name in tables(module)[0]:
        assert f"`{name}`" in text, name
