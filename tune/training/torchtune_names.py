"""torchtune's names in `torchtune.training`, and what stands for them here."""

from __future__ import annotations

_SAVED_STEPS = "a run keeps its state in OUTPUT_DIR/step_N, in files that are checked and found by themselves"
_SHARDING = (
    "shard_model cuts a model on the meta device; tune.checkpoints.load_into fills it, each process its part"
)
_IN_BACKWARD = (
    "training.OptimizerInBackward(params, factory) steps in the backward pass and has one state dict"
)
_FORMATS = "the layout of weights is recognised from the files, and the family from the model"

HERE = {
    "get_cosine_schedule_with_warmup": "tune.training.lr_schedulers.get_cosine_schedule_with_warmup",
    "get_world_size_and_rank": "tune.utils.torchtune_functions.get_world_size_and_rank",
    **{
        name: f"tune.training.torchtune_functions.{name}"
        for name in (
            "cleanup_before_training",
            "compile_loss",
            "compile_model",
            "get_act_offloading_ctx_manager",
            "get_dtype",
            "init_distributed",
            "is_distributed",
            "scale_grads",
            "set_activation_checkpointing",
            "set_default_dtype",
            "set_seed",
        )
    },
}

GONE = {
    **dict.fromkeys(
        (
            "ADAPTER_CONFIG",
            "ADAPTER_KEY",
            "DATALOADER_KEY",
            "EPOCHS_KEY",
            "MAX_STEPS_KEY",
            "MODEL_KEY",
            "OPT_KEY",
            "RNG_KEY",
            "SEED_KEY",
            "STEPS_KEY",
            "TOTAL_EPOCHS_KEY",
            "Checkpointer",
            "DistributedCheckpointer",
        ),
        _SAVED_STEPS,
    ),
    **dict.fromkeys(
        (
            "gather_cpu_state_dict",
            "get_full_optimizer_state_dict",
            "get_shard_conditions",
            "load_from_full_model_state_dict",
            "load_from_full_optimizer_state_dict",
            "validate_no_params_on_meta_device",
        ),
        _SHARDING,
    ),
    **dict.fromkeys(
        ("OptimizerInBackwardWrapper", "create_optim_in_bwd_wrapper", "register_optim_in_bwd_hooks"),
        _IN_BACKWARD,
    ),
    **dict.fromkeys(("FormattedCheckpointFiles", "ModelType", "update_state_dict_for_classifier"), _FORMATS),
    **dict.fromkeys(("NoOpManager", "OffloadActivations"), "use get_act_offloading_ctx_manager"),
    **dict.fromkeys(
        ("get_memory_stats", "log_memory_stats"),
        "use torch.cuda.max_memory_allocated(); a run logs its peak with log_peak_memory_stats=true",
    ),
    **dict.fromkeys(
        (
            "DEFAULT_PROFILER_ACTIVITIES",
            "DEFAULT_PROFILE_DIR",
            "DEFAULT_SCHEDULE",
            "DEFAULT_TRACE_OPTS",
            "PROFILER_KEY",
        ),
        "setup_torch_profiler has arguments for them",
    ),
    "apply_selective_activation_checkpointing": "set_activation_checkpointing takes a function that chooses the blocks",
    "disable_dropout": "dropout is an argument of the builders (attn_dropout, lora_dropout), 0 unless set",
    "get_distributed_backend": "torch.distributed.init_process_group() chooses by the devices there are",
    "get_quantizer_mode": "quantisation-aware training is not here; quantize_base=true trains beside 4-bit weights",
    "get_unmasked_sequence_lengths": "batches are padded on the right: (tokens != pad_id).sum(-1) - 1",
    "prepare_mha_for_tp": "tensor parallelism is not here",
    "validate_expected_param_dtype": "weights keep the dtype the model was built in: compare parameter.dtype",
    "set_torch_num_threads": "use torch.set_num_threads or OMP_NUM_THREADS",
}
