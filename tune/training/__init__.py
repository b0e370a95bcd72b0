"""Parts of a training run: precision, optimizer, schedule, saved steps, metrics, progress."""

from __future__ import annotations

from tune.training import lr_schedulers, metric_logging
from tune.training.activations import activation_offloading, checkpoint_activations, compile_blocks
from tune.training.batches import TokenCounts, count_tokens, group_micro_batches, to_device
from tune.training.checkpointers import (
    FullModelCheckpointer,
    FullModelHFCheckpointer,
    FullModelMetaCheckpointer,
)
from tune.training.determinism import describe_repeatability, make_deterministic, nondeterminism
from tune.training.distributed.gradient_sync import GradientSync, mark_last
from tune.training.distributed.parallel import ParallelPlan, plan_frozen_base, plan_parallel
from tune.training.distributed.processes import (
    add_over_ranks_,
    count_over_ranks,
    end_processes,
    from_rank_zero,
    gather_to_all,
    max_over_ranks,
    seed_this_rank,
    start_processes,
)
from tune.training.distributed.sharded_model import copy_to_host, shard_model
from tune.training.getters import get_metric_logger, get_optimizer
from tune.training.gradients import NonFiniteGuard, clip_gradients
from tune.training.loading import build_loader, check_tokenizer_fits, count_steps_per_epoch
from tune.training.lr_schedulers import get_lr
from tune.training.memory.check import MemoryCheck
from tune.training.memory.oom import explain_out_of_memory, get_peak_memory_gib
from tune.training.memory.plan import LongestRow, MemoryPlan, longest_row, plan_memory
from tune.training.optimizer_in_backward import OptimizerInBackward
from tune.training.optimizers import build_lr_scheduler, build_optimizer
from tune.training.precision import Precision, plan_precision
from tune.training.profiler import DummyProfiler, build_profiler, setup_torch_profiler
from tune.training.progress import Progress, format_summary
from tune.training.run_logs import RunLogs
from tune.training.saving.choosing import choose_step_to_resume, find_newest_complete_step
from tune.training.saving.failed_step import (
    save_failed_step,
    upcoming_sample_ids,
    weights_are_finite,
)
from tune.training.saving.fingerprint import (
    check_fingerprint,
    describe_component,
    hash_code,
    hash_dataset,
    hash_weight_files,
    make_fingerprint,
)
from tune.training.saving.random_state import get_rng_state, set_rng_state
from tune.training.saving.resolved_config import write_resolved_config
from tune.training.saving.resuming import resume_state
from tune.training.saving.run_counters import RunCounters
from tune.training.saving.run_lock import RunLock, claim_output_dir
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
from tune.training.saving.step_saver import StepSaver
from tune.training.saving.tokenizer_copy import keep_tokenizer
from tune.training.signals import StopRequest
from tune.training.spikes import SpikeWatch
from tune.training.throughput import Speed, SpeedMeter, build_speed_meter, measure_matmul_rate

__all__ = [
    "DummyProfiler",
    "FullModelCheckpointer",
    "FullModelHFCheckpointer",
    "FullModelMetaCheckpointer",
    "GradientSync",
    "LongestRow",
    "MemoryCheck",
    "MemoryPlan",
    "NonFiniteGuard",
    "OptimizerInBackward",
    "ParallelPlan",
    "Precision",
    "Progress",
    "RunCounters",
    "RunLock",
    "RunLogs",
    "SavedStep",
    "Speed",
    "SpeedMeter",
    "SpikeWatch",
    "StepSaver",
    "StopRequest",
    "TokenCounts",
    "activation_offloading",
    "add_over_ranks_",
    "build_loader",
    "build_lr_scheduler",
    "build_optimizer",
    "build_profiler",
    "build_speed_meter",
    "capture_run_state",
    "check_fingerprint",
    "check_tokenizer_fits",
    "checkpoint_activations",
    "choose_step_to_resume",
    "claim_output_dir",
    "clip_gradients",
    "compile_blocks",
    "copy_to_host",
    "count_over_ranks",
    "count_steps_per_epoch",
    "count_tokens",
    "describe_component",
    "describe_repeatability",
    "end_processes",
    "explain_out_of_memory",
    "find_newest_complete_step",
    "format_summary",
    "from_rank_zero",
    "gather_to_all",
    "get_lr",
    "get_metric_logger",
    "get_optimizer",
    "get_peak_memory_gib",
    "get_rng_state",
    "group_micro_batches",
    "hash_code",
    "hash_dataset",
    "hash_weight_files",
    "keep_tokenizer",
    "link_steps",
    "list_saved_steps",
    "load_run_state",
    "longest_row",
    "lr_schedulers",
    "make_deterministic",
    "make_fingerprint",
    "mark_last",
    "max_over_ranks",
    "measure_matmul_rate",
    "metric_logging",
    "nondeterminism",
    "plan_frozen_base",
    "plan_memory",
    "plan_parallel",
    "plan_precision",
    "prune_saved_steps",
    "read_run",
    "remove_unfinished_steps",
    "resume_state",
    "save_failed_step",
    "save_run_state",
    "seed_this_rank",
    "set_rng_state",
    "setup_torch_profiler",
    "shard_model",
    "start_processes",
    "step_name",
    "to_device",
    "upcoming_sample_ids",
    "verify_step",
    "weights_are_finite",
    "write_resolved_config",
    "write_run_state",
    "write_step",
]
