"""Parts of a training run: precision, optimizer, schedule, saved steps, metrics, progress."""

from __future__ import annotations

from tune.training import lr_schedulers, metric_logging
from tune.training.activations import checkpoint_activations
from tune.training.attention_kernels import prefer_attention_kernels
from tune.training.batches import count_targets, count_tokens, group_micro_batches, to_device
from tune.training.building import begin_adapters, build_on_meta, build_reward_model, choose_trained
from tune.training.checkpointers import (
    FullModelCheckpointer,
    FullModelHFCheckpointer,
    FullModelMetaCheckpointer,
    FullModelTorchTuneCheckpointer,
)
from tune.training.compilation import compile_blocks, should_compile
from tune.training.determinism import describe_repeatability, make_deterministic
from tune.training.distributed.frozen_base import shard_dim_of_base
from tune.training.distributed.gradient_sync import GradientSync, mark_last
from tune.training.distributed.sharded_model import shard_model, write_full_model
from tune.training.getters import get_metric_logger, get_optimizer
from tune.training.loading import build_loader
from tune.training.loss_parts import LossParts
from tune.training.losses import build_loss
from tune.training.lr_schedulers import get_lr
from tune.training.memory.oom import explain_out_of_memory
from tune.training.memory.plan import LongestRow, MemoryPlan, longest_row, plan_memory
from tune.training.memory.prediction import PlannedRun
from tune.training.monitor import Monitor
from tune.training.offloading import activation_offloading
from tune.training.optimizer_in_backward import OptimizerInBackward
from tune.training.optimizers import build_lr_scheduler, build_optimizer
from tune.training.precision import plan_precision
from tune.training.preference import (
    PreferenceMetrics,
    compare_answers,
    count_pairs,
    score_answers,
    score_text,
)
from tune.training.profiler import DummyProfiler, setup_torch_profiler
from tune.training.reference import Reference
from tune.training.saving.checkpoints import Checkpoints
from tune.training.saving.fingerprint import fingerprint_run, hash_weight_files
from tune.training.saving.preview_file import write_preview
from tune.training.saving.resolved_config import write_resolved_config
from tune.training.saving.resume_point import find_newest_complete_step
from tune.training.saving.saved_steps import SavedStep, list_saved_steps, verify_step
from tune.training.signals import StopRequest
from tune.training.step_guard import StepGuard, clip_gradients
from tune.training.teacher import Teacher
from tune.training.torchtune_names import GONE, HERE
from tune.training.train_state import TrainState, begin_state
from tune.training.trained_weights import freeze
from tune.training.validation import mean_loss
from tune.training.vocabulary import check_tokenizer_fits, fit_vocabulary
from tune.utils.mesh import init_mesh
from tune.utils.torchtune_names import offer_names

__all__ = [
    "Checkpoints",
    "DummyProfiler",
    "FullModelCheckpointer",
    "FullModelHFCheckpointer",
    "FullModelMetaCheckpointer",
    "FullModelTorchTuneCheckpointer",
    "GradientSync",
    "LongestRow",
    "LossParts",
    "MemoryPlan",
    "Monitor",
    "OptimizerInBackward",
    "PlannedRun",
    "PreferenceMetrics",
    "Reference",
    "SavedStep",
    "StepGuard",
    "StopRequest",
    "Teacher",
    "TrainState",
    "activation_offloading",
    "begin_adapters",
    "begin_state",
    "build_loader",
    "build_loss",
    "build_lr_scheduler",
    "build_on_meta",
    "build_optimizer",
    "build_reward_model",
    "check_tokenizer_fits",
    "checkpoint_activations",
    "choose_trained",
    "clip_gradients",
    "compare_answers",
    "compile_blocks",
    "count_pairs",
    "count_targets",
    "count_tokens",
    "describe_repeatability",
    "explain_out_of_memory",
    "find_newest_complete_step",
    "fingerprint_run",
    "fit_vocabulary",
    "freeze",
    "get_lr",
    "get_metric_logger",
    "get_optimizer",
    "group_micro_batches",
    "hash_weight_files",
    "init_mesh",
    "list_saved_steps",
    "longest_row",
    "lr_schedulers",
    "make_deterministic",
    "mark_last",
    "mean_loss",
    "metric_logging",
    "plan_memory",
    "plan_precision",
    "prefer_attention_kernels",
    "score_answers",
    "score_text",
    "setup_torch_profiler",
    "shard_dim_of_base",
    "shard_model",
    "should_compile",
    "to_device",
    "verify_step",
    "write_full_model",
    "write_preview",
    "write_resolved_config",
]
offer_names(__name__, HERE, GONE)
