"""Parts of a training run: precision, optimizer, schedule, saved steps, metrics, progress."""

from __future__ import annotations

from tune.training import lr_schedulers, metric_logging
from tune.training.activations import activation_offloading, checkpoint_activations, compile_blocks
from tune.training.batches import (
    TokenCounts,
    count_targets,
    count_tokens,
    group_micro_batches,
    to_device,
)
from tune.training.checkpointers import (
    FullModelCheckpointer,
    FullModelHFCheckpointer,
    FullModelMetaCheckpointer,
    FullModelTorchTuneCheckpointer,
)
from tune.training.determinism import describe_repeatability, make_deterministic, nondeterminism
from tune.training.distributed.frozen_base import shard_dim_of_base
from tune.training.distributed.gradient_sync import GradientSync, mark_last
from tune.training.distributed.sharded_model import (
    copy_to_host,
    describe_processes,
    shard_model,
    write_full_model,
)
from tune.training.getters import get_metric_logger, get_optimizer
from tune.training.loading import build_loader
from tune.training.lr_schedulers import get_lr
from tune.training.memory.oom import explain_out_of_memory, get_peak_memory_gib
from tune.training.memory.plan import LongestRow, MemoryPlan, longest_row, plan_memory
from tune.training.monitor import Monitor
from tune.training.optimizer_in_backward import OptimizerInBackward
from tune.training.optimizers import build_lr_scheduler, build_optimizer
from tune.training.precision import Precision, plan_precision
from tune.training.profiler import DummyProfiler, build_profiler, setup_torch_profiler
from tune.training.progress import Progress, format_summary
from tune.training.saving.checkpoints import Checkpoints
from tune.training.saving.fingerprint import (
    check_fingerprint,
    describe_component,
    fingerprint_run,
    hash_code,
    hash_dataset,
    hash_weight_files,
    make_fingerprint,
)
from tune.training.saving.nonfinite_dump import (
    dump_nonfinite_step,
    upcoming_sample_ids,
    weights_are_finite,
)
from tune.training.saving.random_state import get_rng_state, set_rng_state
from tune.training.saving.resolved_config import write_resolved_config
from tune.training.saving.resume_point import choose_step_to_resume, find_newest_complete_step
from tune.training.saving.run_lock import RunLock
from tune.training.saving.run_state import (
    capture_run_state,
    load_run_state,
    read_run,
    save_run_state,
    write_run_state,
)
from tune.training.saving.saved_steps import (
    SavedStep,
    link_steps,
    list_saved_steps,
    prune_saved_steps,
    remove_unfinished_steps,
    step_name,
    verify_step,
    write_step,
)
from tune.training.signals import StopRequest
from tune.training.spikes import SpikeWatch
from tune.training.step_guard import StepGuard, clip_gradients
from tune.training.throughput import Speed, SpeedMeter, measure_matmul_rate
from tune.training.torchtune_names import GONE, HERE
from tune.training.train_state import TrainState, begin_state
from tune.training.validation import mean_loss
from tune.training.vocabulary import check_tokenizer_fits, fit_vocabulary
from tune.utils.mesh import Mesh, init_mesh
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
    "MemoryPlan",
    "Mesh",
    "Monitor",
    "OptimizerInBackward",
    "Precision",
    "Progress",
    "RunLock",
    "SavedStep",
    "Speed",
    "SpeedMeter",
    "SpikeWatch",
    "StepGuard",
    "StopRequest",
    "TokenCounts",
    "TrainState",
    "activation_offloading",
    "begin_state",
    "build_loader",
    "build_lr_scheduler",
    "build_optimizer",
    "build_profiler",
    "capture_run_state",
    "check_fingerprint",
    "check_tokenizer_fits",
    "checkpoint_activations",
    "choose_step_to_resume",
    "clip_gradients",
    "compile_blocks",
    "copy_to_host",
    "count_targets",
    "count_tokens",
    "describe_component",
    "describe_processes",
    "describe_repeatability",
    "dump_nonfinite_step",
    "explain_out_of_memory",
    "find_newest_complete_step",
    "fingerprint_run",
    "fit_vocabulary",
    "format_summary",
    "get_lr",
    "get_metric_logger",
    "get_optimizer",
    "get_peak_memory_gib",
    "get_rng_state",
    "group_micro_batches",
    "hash_code",
    "hash_dataset",
    "hash_weight_files",
    "init_mesh",
    "link_steps",
    "list_saved_steps",
    "load_run_state",
    "longest_row",
    "lr_schedulers",
    "make_deterministic",
    "make_fingerprint",
    "mark_last",
    "mean_loss",
    "measure_matmul_rate",
    "metric_logging",
    "nondeterminism",
    "plan_memory",
    "plan_precision",
    "prune_saved_steps",
    "read_run",
    "remove_unfinished_steps",
    "save_run_state",
    "set_rng_state",
    "setup_torch_profiler",
    "shard_dim_of_base",
    "shard_model",
    "step_name",
    "to_device",
    "upcoming_sample_ids",
    "verify_step",
    "weights_are_finite",
    "write_full_model",
    "write_resolved_config",
    "write_run_state",
    "write_step",
]

offer_names(__name__, HERE, GONE)
