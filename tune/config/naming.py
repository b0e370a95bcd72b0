"""What a mistaken name probably meant: near spellings, other tools' names, the section where a key belongs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tune.config.params import ParamInfo

# Names of other tools (Hugging Face's Trainer and TRL, axolotl, LLaMA-Factory, torchtune, litgpt, mlx-lm) and what
# they are called here, first the one to prefer. A dotted name is an argument of a component.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "optimizer.lr"),
    "max_lr": ("lr", "optimizer.lr"),
    "base_lr": ("lr", "optimizer.lr"),
    "per_device_train_batch_size": ("batch_size",),
    "train_batch_size": ("batch_size",),
    "micro_batch_size": ("batch_size",),
    "mbs": ("batch_size",),
    "per_device_eval_batch_size": ("batch_size_val",),
    "eval_batch_size": ("batch_size_val",),
    "val_batch_size": ("batch_size_val",),
    "num_train_epochs": ("epochs",),
    "num_epochs": ("epochs",),
    "n_epochs": ("epochs",),
    "max_epochs": ("epochs",),
    "max_steps": ("max_steps_per_epoch",),
    "iters": ("max_steps_per_epoch",),
    "num_iters": ("max_steps_per_epoch",),
    "max_iters": ("max_steps_per_epoch",),
    "train_steps": ("max_steps_per_epoch",),
    "output": ("output_dir",),
    "out_dir": ("output_dir",),
    "save_dir": ("output_dir",),
    "log_dir": ("output_dir",),
    "logging_dir": ("output_dir",),
    "adapter_path": ("output_dir",),
    "gradient_checkpointing": ("enable_activation_checkpointing",),
    "activation_checkpointing": ("enable_activation_checkpointing",),
    "use_gradient_checkpointing": ("enable_activation_checkpointing",),
    "grad_checkpoint": ("enable_activation_checkpointing",),
    "activation_offloading": ("enable_activation_offloading",),
    "metric_logger_type": ("metric_logger",),
    "report_to": ("metric_logger",),
    "logger": ("metric_logger",),
    "logger_name": ("metric_logger",),
    "cpu_offload": ("fsdp_cpu_offload",),
    "offload": ("fsdp_cpu_offload",),
    "run_generation": ("generate_every_n_steps",),
    "grad_clip": ("clip_grad_norm",),
    "gradient_clipping": ("clip_grad_norm",),
    "max_grad_norm": ("clip_grad_norm",),
    "max_norm": ("clip_grad_norm",),
    "gradient_clip_val": ("clip_grad_norm",),
    "grad_accum": ("gradient_accumulation_steps",),
    "grad_accumulation_steps": ("gradient_accumulation_steps",),
    "accumulate_grad_batches": ("gradient_accumulation_steps",),
    "model_name_or_path": ("model_checkpoint", "checkpointer.checkpoint_dir"),
    "base_model": ("model_checkpoint", "checkpointer.checkpoint_dir"),
    "model_name": ("model",),
    "model_type": ("model",),
    "checkpoint": ("model_checkpoint", "checkpointer.checkpoint_dir"),
    "checkpoint_dir": ("model_checkpoint", "checkpointer.checkpoint_dir"),
    "checkpoint_path": ("model_checkpoint", "checkpointer.checkpoint_dir"),
    "ckpt_dir": ("model_checkpoint", "checkpointer.checkpoint_dir"),
    "pretrained_model_name_or_path": ("model_checkpoint", "checkpointer.checkpoint_dir"),
    "tokenizer_path": ("tokenizer_checkpoint", "tokenizer.path"),
    "tokenizer_name": ("tokenizer_checkpoint", "tokenizer.path"),
    "tokenizer_name_or_path": ("tokenizer_checkpoint", "tokenizer.path"),
    "datasets": ("dataset",),
    "train_dataset": ("dataset",),
    "data": ("dataset",),
    "train_file": ("dataset.source",),
    "dataset_name": ("dataset.source", "dataset"),
    "data_path": ("dataset.source", "dataset"),
    "dataset_path": ("dataset.source", "dataset"),
    "eval_dataset": ("dataset_val",),
    "val_dataset": ("dataset_val",),
    "test_dataset": ("dataset_val",),
    "val_set_size": ("dataset_val",),
    "sequence_len": ("dataset.max_seq_len", "tokenizer.max_seq_len"),
    "cutoff_len": ("dataset.max_seq_len", "tokenizer.max_seq_len"),
    "max_length": ("dataset.max_seq_len", "max_new_tokens", "tokenizer.max_seq_len"),
    "max_seq_length": ("dataset.max_seq_len", "tokenizer.max_seq_len"),
    "max_seq_len": ("dataset.max_seq_len", "tokenizer.max_seq_len"),
    "seq_len": ("dataset.max_seq_len", "tokenizer.max_seq_len"),
    "seq_length": ("dataset.max_seq_len", "tokenizer.max_seq_len"),
    "block_size": ("dataset.max_seq_len", "tokenizer.max_seq_len"),
    "packing": ("dataset.packed",),
    "sample_packing": ("dataset.packed",),
    "packed": ("dataset.packed",),
    "train_on_inputs": ("train_on_input", "dataset.train_on_input"),
    "train_on_prompt": ("train_on_input", "dataset.train_on_input"),
    "mask_prompt": ("train_on_input", "dataset.train_on_input"),
    "completion_only_loss": ("train_on_input", "dataset.train_on_input"),
    "lr_scheduler_type": ("lr_scheduler",),
    "lr_schedule": ("lr_scheduler",),
    "scheduler": ("lr_scheduler",),
    "warmup_steps": ("lr_scheduler.num_warmup_steps",),
    "num_warmup_steps": ("lr_scheduler.num_warmup_steps",),
    "warmup_ratio": ("lr_scheduler.num_warmup_steps",),
    "warmup": ("lr_scheduler.num_warmup_steps",),
    "optim": ("optimizer",),
    "optimiser": ("optimizer",),
    "optimizer_type": ("optimizer",),
    "optimizer_name": ("optimizer",),
    "adam_beta1": ("optimizer.betas",),
    "adam_beta2": ("optimizer.betas",),
    "adam_epsilon": ("optimizer.eps",),
    "weight_decay": ("optimizer.weight_decay",),
    "momentum": ("optimizer.momentum",),
    "betas": ("optimizer.betas",),
    "loss_fn": ("loss",),
    "criterion": ("loss",),
    "logging_steps": ("log_every_n_steps",),
    "log_interval": ("log_every_n_steps",),
    "log_every": ("log_every_n_steps",),
    "steps_per_report": ("log_every_n_steps",),
    "save_steps": ("save_every_n_steps",),
    "save_interval": ("save_every_n_steps",),
    "save_every": ("save_every_n_steps",),
    "checkpoint_every": ("save_every_n_steps",),
    "eval_steps": ("run_val_every_n_steps",),
    "eval_interval": ("run_val_every_n_steps",),
    "steps_per_eval": ("run_val_every_n_steps",),
    "val_every": ("run_val_every_n_steps",),
    "save_total_limit": ("keep_last_n_checkpoints",),
    "keep_last": ("keep_last_n_checkpoints",),
    "resume": ("resume_from_checkpoint",),
    "bf16": ("dtype",),
    "fp16": ("dtype",),
    "fp32": ("dtype",),
    "half": ("dtype",),
    "precision": ("dtype",),
    "torch_dtype": ("dtype",),
    "mixed_precision": ("dtype",),
    "load_in_16bit": ("dtype",),
    "torch_compile": ("compile",),
    "use_compile": ("compile",),
    "fsdp": ("enable_fsdp",),
    "random_seed": ("seed",),
    "manual_seed": ("seed",),
    "data_seed": ("seed",),
    "shuffle_data": ("shuffle",),
    "verbosity": ("log_level",),
    "cuda": ("device",),
    "use_cpu": ("device",),
    "no_cuda": ("device",),
    "accelerator": ("device",),
    "memory_efficient_fsdp_wrap": ("custom_sharded_layers",),
    "max_tokens": ("max_new_tokens",),
    "num_tokens": ("max_new_tokens",),
    "max_generated_tokens": ("max_new_tokens",),
    "input": ("prompt",),
    "temp": ("temperature",),
    "native_checkpoint_path": ("model_checkpoint",),
}

# A few of those names carry their value in them: `bf16: true` means `dtype: bf16`.
VALUE_NAMES = {
    ("bf16", "dtype"): "dtype: bf16",
    ("fp16", "dtype"): "dtype: fp16",
    ("fp32", "dtype"): "dtype: fp32",
    ("half", "dtype"): "dtype: fp16",
    ("use_cpu", "device"): "device: cpu",
    ("no_cuda", "device"): "device: cpu",
    ("cuda", "device"): "device: cuda",
}


@dataclass(frozen=True)
class Guess:
    """What an unknown name probably meant.

    Args:
        name: what to write instead; dotted for an argument of a component.
        reason: why, to go on after the fact: "did you mean lr?".
        entry: a whole "name: value" where the name carried the value.
    """

    name: str
    reason: str
    entry: str | None = None


def nearest(word: str, words: Iterable[str], cutoff: float = 0.72) -> str | None:
    """The name most like `word`, case and separators aside; None if nothing is near."""
    import difflib  # only on the way to an error

    if len(word) > 100:
        return None
    folded: dict[str, str] = {}
    for candidate in words:
        folded.setdefault(fold(candidate), candidate)
    if fold(word) in folded:
        return folded[fold(word)]
    close = difflib.get_close_matches(fold(word), folded, n=1, cutoff=cutoff)
    return folded[close[0]] if close else None


def fold(name: str) -> str:
    """A name without case and separators: what people mistype most."""
    return name.lower().replace("_", "").replace("-", "")


def guess_parameter(
    word: str, infos: Mapping[str, ParamInfo], arguments: Mapping[str, set[str]]
) -> Guess | None:
    """What an unknown top-level key probably meant.

    Args:
        word: the key.
        infos: the declared parameters.
        arguments: for each component the arguments it takes (of those whose signature is known).
    """
    exact = next((name for name in infos if fold(name) == fold(word)), None)
    if exact:
        return Guess(exact, f"did you mean {exact}?")
    plain = word.lower().replace("-", "_")
    for target in OTHER_NAMES.get(plain, ()):
        section, _, argument = target.partition(".")
        if section not in infos:
            continue
        if argument and argument not in arguments.get(section, {argument}):
            continue
        entry = VALUE_NAMES.get((plain, target))
        if argument and plain == argument:
            return Guess(target, f"it is an argument of {section}: write it there, as {target}")
        return Guess(target, f"here that is called {target}" if not entry else f"write {entry}", entry)
    for section, names in arguments.items():
        if word in names and section in infos:
            target = f"{section}.{word}"
            return Guess(target, f"it is an argument of {section}: write it there, as {target}")
    section, dot, argument = word.partition(".")
    if dot and section in infos and argument:
        short = next((name for name, info in infos.items() if info.short_for == word), None)
        reason = f"in a file the parts of a path nest: {argument} stands below {section}"
        return Guess(word, reason + (f", or as {short} at the top" if short else ""), short)
    close = nearest(word, [name for name, info in infos.items() if not info.hidden])
    return Guess(close, f"did you mean {close}?") if close else None


def guess_argument(
    word: str, section: str, names: Iterable[str], infos: Mapping[str, ParamInfo]
) -> Guess | None:
    """What an unknown argument of a component probably meant.

    Args:
        word: the argument.
        section: the component's place.
        names: the arguments the component takes.
        infos: the declared parameters.
    """
    known = list(names)
    exact = next((name for name in known if fold(name) == fold(word)), None)
    if exact:
        return Guess(exact, f"did you mean {exact}?")
    top = section.split(".")[0]
    for target in OTHER_NAMES.get(word.lower(), ()):
        owner, _, argument = target.partition(".")
        if owner == top and argument in known:
            return Guess(argument, f"here that is called {argument}")
    if word in infos:
        return Guess(word, f"{word} belongs at the top level of the configuration, not in {section}")
    close = nearest(word, known)
    if close:
        return Guess(close, f"did you mean {close}?")
    for target in OTHER_NAMES.get(word.lower(), ()):
        if target in infos:
            return Guess(target, f"here that is called {target}, at the top level")
    return None
