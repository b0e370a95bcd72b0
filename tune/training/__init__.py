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
from tune.training.fingerprint import (
    check_fingerprint,
    describe_component,
    hash_dataset,
    hash_weight_files,
    make_fingerprint,
)
from tune.training.getters import get_metric_logger, get_optimizer
from tune.training.gradients import NonFiniteGuard, clip_gradients
from tune.training.loading import build_loader, check_tokenizer_fits, count_steps_per_epoch
from tune.training.lr_schedulers import get_lr
from tune.training.memory import explain_out_of_memory, get_peak_memory_gib, reset_peak_memory
from tune.training.optimizer_in_backward import OptimizerInBackward
from tune.training.optimizers import build_lr_scheduler, build_optimizer
from tune.training.parallel import check_parallel_plan
from tune.training.precision import Precision, plan_precision
from tune.training.profiler import DummyProfiler, build_profiler, setup_torch_profiler
from tune.training.progress import Progress, format_summary
from tune.training.resolved_config import write_resolved_config
from tune.training.run_lock import RunLock
from tune.training.run_state import (
    get_rng_state,
    load_run_state,
    read_run,
    save_run_state,
    set_rng_state,
)
from tune.training.saved_steps import (
    SavedStep,
    choose_step_to_resume,
    find_newest_complete_step,
    link_steps,
    list_saved_steps,
    prune_saved_steps,
    remove_unfinished_steps,
    step_name,
    verify_step,
    write_step,
)
from tune.training.signals import StopRequest
from tune.training.throughput import Speed, SpeedMeter, measure_matmul_rate

__all__ = [
    "DummyProfiler",
    "FullModelCheckpointer",
    "FullModelHFCheckpointer",
    "FullModelMetaCheckpointer",
    "NonFiniteGuard",
    "OptimizerInBackward",
    "Precision",
    "Progress",
    "RunLock",
    "SavedStep",
    "Speed",
    "SpeedMeter",
    "StopRequest",
    "TokenCounts",
    "activation_offloading",
    "build_loader",
    "build_lr_scheduler",
    "build_optimizer",
    "build_profiler",
    "check_fingerprint",
    "check_parallel_plan",
    "check_tokenizer_fits",
    "checkpoint_activations",
    "choose_step_to_resume",
    "clip_gradients",
    "compile_blocks",
    "count_steps_per_epoch",
    "count_tokens",
    "describe_component",
    "explain_out_of_memory",
    "find_newest_complete_step",
    "format_summary",
    "get_lr",
    "get_metric_logger",
    "get_optimizer",
    "get_peak_memory_gib",
    "get_rng_state",
    "group_micro_batches",
    "hash_dataset",
    "hash_weight_files",
    "link_steps",
    "list_saved_steps",
    "load_run_state",
    "lr_schedulers",
    "make_fingerprint",
    "measure_matmul_rate",
    "metric_logging",
    "plan_precision",
    "prune_saved_steps",
    "read_run",
    "remove_unfinished_steps",
    "reset_peak_memory",
    "save_run_state",
    "set_rng_state",
    "setup_torch_profiler",
    "step_name",
    "to_device",
    "verify_step",
    "write_resolved_config",
    "write_step",
]
