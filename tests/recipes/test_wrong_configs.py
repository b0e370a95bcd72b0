"""Wrong configurations of every kind: refused where they stand, and what is suggested is right when it is done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.components import trusting
from tune.config import Diagnostic, resolve
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.recipes.params.generate import GenerateParams
from tune.recipes.params.lora_finetune import LoraFinetuneParams

BASE = "output_dir: out\nmodel_checkpoint: ck\ndataset: alpaca\nlr: 2e-5\n"
GENERATE = "model_checkpoint: ck\nprompt: hello\n"
KINDS = {
    "full": (FullFinetuneParams, BASE),
    "lora": (LoraFinetuneParams, BASE),
    "generate": (GenerateParams, GENERATE),
}


def without(text: str, *keys: str) -> str:
    return "".join(line + "\n" for line in text.splitlines() if line.partition(":")[0] not in keys)


def errors_of(kind: str, extra: str, *overrides: str) -> list[Diagnostic]:
    params, base = KINDS[kind]
    keys = [line.partition(":")[0] for line in extra.splitlines() if not line.startswith(" ")]
    if re.search(r"\blr:|learning_rate", extra):
        keys.append("lr")
    return resolve(params, text=without(base, *keys) + extra, overrides=overrides).errors


# An entry, the argument that it gives a number to, and that number.
OUT_OF_RANGE = [
    ("optimizer", "AdamW", "lr", "-1e-5"),
    ("optimizer", "AdamW", "weight_decay", "-1"),
    ("optimizer", "AdamW", "eps", "-1e-8"),
    ("optimizer", "AdamW", "betas", "[0.9, 1.0]"),
    ("optimizer", "torch.optim.SGD", "momentum", "-0.9"),
    ("lr_scheduler", "cosine", "num_warmup_steps", "-1"),
    ("lr_scheduler", "StepLR", "step_size", "0"),
    ("lr_scheduler", "CosineAnnealingLR", "T_max", "0"),
    ("lr_scheduler", "LinearLR", "start_factor", "1.5"),
    ("lr_scheduler", "ConstantLR", "factor", "0"),
    ("dataset", "alpaca", "max_seq_len", "1"),
    ("dataset", "alpaca", "limit", "0"),
    ("tokenizer", "{path: t, _component_: llama2_tokenizer}", "max_seq_len", "0"),
    ("loss", "LinearCrossEntropyLoss", "num_output_chunks", "0"),
    ("loss", "CrossEntropyLoss", "label_smoothing", "1.1"),
    ("model", "lora_llama2_7b", "lora_rank", "0"),
    ("model", "lora_llama2_7b", "lora_alpha", "0"),
    ("model", "lora_llama2_7b", "lora_dropout", "1"),
    ("model", "llama2_7b", "attn_dropout", "-0.1"),
    ("profiler", "setup_torch_profiler", "active_steps", "0"),
]


def test_a_convolution_sees_a_token_at_least() -> None:
    (error,) = errors_of("full", f"model: {{_component_: lfm2, {NARROW}, conv_width: 0}}\n")
    assert (error.code, error.path) == ("out-of-range", "model.conv_width")


@pytest.mark.parametrize(("slot", "name", "argument", "value"), OUT_OF_RANGE)
def test_numbers_that_no_argument_can_be(slot: str, name: str, argument: str, value: str) -> None:
    fixed = {"path": "t"} if slot == "tokenizer" else {}
    if name.startswith("lora_"):
        fixed["lora_attn_modules"] = "[q_proj]"
    name = re.sub(r".*_component_: (\w+)}", r"\1", name)
    lines = [f"{slot}:", f"  _component_: {name}", *(f"  {key}: {item}" for key, item in fixed.items())]
    (error,) = errors_of("lora", "\n".join([*lines, f"  {argument}: {value}"]) + "\n")
    assert (error.code, error.path) == ("out-of-range", f"{slot}.{argument}")
    base = without(BASE, slot, "lr" if argument == "lr" else "")
    assert error.source.line == len(base.splitlines()) + len(lines) + 1
    shown = value if "[" not in value else "1.0"
    assert float(error.message.rpartition("not ")[2]) == float(shown)
    (error,) = errors_of("lora", "\n".join(lines) + "\n", f"{slot}.{argument}={value}")
    assert (error.code, error.source.kind) == ("out-of-range", "cli")


@pytest.mark.parametrize(
    ("slot", "name", "reason"),
    [
        ("optimizer", "LBFGS", "several times per step"),
        ("optimizer", "torch.optim.SparseAdam", "sparse gradients"),
        ("lr_scheduler", "ReduceLROnPlateau", "validation loss"),
        ("lr_scheduler", "LambdaLR", "a function"),
        ("collate_fn", "tune.data.padded_collate", "one field alone"),
    ],
)
def test_components_that_no_recipe_can_use(slot: str, name: str, reason: str) -> None:
    (error,) = errors_of("full", f"{slot}: {name}\n")
    assert (error.code, error.path) == ("wrong-component-kind", slot)
    assert reason in error.message


SIZES = "vocab_size: 90, num_layers: 2, max_seq_len: 40"
NARROW = f"{SIZES}, num_heads: 2, num_kv_heads: 1, embed_dim: 8, intermediate_dim: 7"
# What each recipe is told, and the paths of what is then wrong.
TOGETHER = [
    ("full lora", "optimizer: {_component_: SGD, lr: 1e-3, nesterov: true}", ["optimizer.nesterov"]),
    (
        "full lora",
        "optimizer: {_component_: SGD, momentum: 0.9, dampening: 0.1, nesterov: true}",
        ["optimizer.nesterov"],
    ),
    ("full lora", "optimizer: {_component_: AdamW, fused: true, foreach: true}", ["optimizer.fused"]),
    ("full lora", "optimizer: {_component_: AdamW, maximize: true}", ["optimizer.maximize"]),
    (
        "full lora",
        "lr_scheduler: {_component_: linear, num_warmup_steps: 2, last_epoch: 5}",
        ["lr_scheduler.last_epoch"],
    ),
    (
        "full lora",
        "lr_scheduler: {_component_: OneCycleLR, max_lr: 1e-3, epochs: 2, steps_per_epoch: null}",
        ["lr_scheduler.total_steps"],
    ),
    (
        "full lora",
        "lr_scheduler: {_component_: OneCycleLR, max_lr: 1e-3, total_steps: 10, pct_start: 0.1}",
        ["lr_scheduler.pct_start"],
    ),
    ("full lora", "collate_fn: {_component_: padded_collate_sft, ignore_idx: 0}", ["collate_fn.ignore_idx"]),
    (
        "lora",
        f"apply_lora_to_output: true\nmodel: {{_component_: llama2, {SIZES}, num_heads: 3, embed_dim: 30, "
        "tie_word_embeddings: true}",
        ["apply_lora_to_output"],
    ),
    ("full lora", "optimizer: {_component_: Adam, capturable: true}", ["optimizer.capturable"]),
    ("full lora", "optimizer: {_component_: SGD, differentiable: true}", ["optimizer.differentiable"]),
    (
        "full lora",
        "loss: {_component_: CrossEntropyLoss, reduction: mean, ignore_index: 0}",
        ["loss.reduction", "loss.ignore_index"],
    ),
    ("full lora", "fsdp_cpu_offload: true\ndata_parallel_shard_dim: 1", ["fsdp_cpu_offload"]),
    ("full lora", "dtype: fp16\ndata_parallel_shard_dim: 2", ["dtype"]),
    (
        "full lora",
        "optimizer_in_bwd: true\ndata_parallel_replicate_dim: 2\ndata_parallel_shard_dim: 1",
        ["optimizer_in_bwd"],
    ),
    ("full lora", "optimizer: bitsandbytes.optim.AdamW8bit\ndata_parallel_shard_dim: 2", ["optimizer"]),
    (
        "full lora",
        "optimizer: {_component_: SGD, lr: 1e-3, fused: true}\ndata_parallel_shard_dim: 2",
        ["optimizer.fused"],
    ),
    ("full lora", "custom_sharded_layers: ['']", ["custom_sharded_layers"]),
    (
        "full lora",
        "device: mps\nenable_activation_offloading: true\nfsdp_cpu_offload: true",
        ["enable_activation_offloading", "fsdp_cpu_offload"],
    ),
    (
        "full lora",
        f"model: {{_component_: llama2, {SIZES}, num_heads: 3, embed_dim: 32}}",
        ["model.embed_dim"],
    ),
    (
        "full lora",
        f"model: {{_component_: llama2, {SIZES}, num_heads: 5, embed_dim: 35}}",
        ["model.embed_dim"],
    ),
    (
        "full lora",
        f"model: {{_component_: llama2, {SIZES}, num_heads: 4, num_kv_heads: 3, embed_dim: 32}}",
        ["model.num_heads"],
    ),
    (
        "full lora",
        "dataset: [alpaca, {_component_: instruct, source: a, prompt_template: alpca}]",
        ["dataset.1.prompt_template"],
    ),
    (
        "full lora",
        "dataset_val: {_component_: instruct, source: a, prompt_template: {usr: [a, b]}}",
        ["dataset_val.prompt_template"],
    ),
    ("full lora", "dataset: {_component_: alpaca, split: 'train[5%'}", ["dataset.split"]),
    ("full lora", "dataset: [alpaca, {_component_: instruct, source: ''}]", ["dataset.1.source"]),
    ("full", "optimizer: Muon", ["optimizer"]),
    ("full", "model: {_component_: lora_llama2_7b, lora_attn_modules: [q_proj]}", ["model"]),
    ("lora", "adapter_checkpoint: ''", ["checkpointer.adapter_checkpoint"]),
    ("lora", "lora_attn_modules: []", ["lora_attn_modules"]),
    ("lora", "lora_attn_modules: [q_proj, q_proj]", ["lora_attn_modules"]),
    ("lora", "model: {_component_: lora_llama2_7b, lora_attn_modules: []}", ["model.lora_attn_modules"]),
    (
        "lora",
        "model: {_component_: lora_llama2_7b, lora_attn_modules: [v_proj, v_proj]}",
        ["model.lora_attn_modules"],
    ),
    (
        "lora",
        "model: {_component_: lora_lfm2_350m, lora_attn_modules: [q_proj, nope]}",
        ["model.lora_attn_modules"],
    ),
    ("full", f"model: {{_component_: qwen3_5, {NARROW}, num_state_heads: 24}}", ["model.num_state_heads"]),
    ("lora", "model: {_component_: qlora_llama2_7b, lora_attn_modules: [q_proj]}\ndtype: fp16", ["model"]),
    (
        "lora",
        "model: {_component_: lora_phi4_14b, lora_attn_modules: [q_proj], quantize_base: true}\nfsdp_cpu_offload: true",
        ["model.quantize_base"],
    ),
    (
        "lora",
        "model: {_component_: lora_llama2_7b, lora_attn_modules: [q_proj]}\nlora_rank: 4\nuse_dora: true",
        ["lora_rank", "use_dora"],
    ),
    (
        "lora",
        "quantize_base: true\ndata_parallel_shard_dim: 2\ndtype: fp16",
        ["quantize_base", "quantize_base", "dtype"],
    ),
    ("generate", "prompt_template: lama3", ["prompt_template"]),
    ("generate", "adapter_checkpoint: ''", ["checkpointer.adapter_checkpoint"]),
    ("generate", "stop: ['']", ["stop"]),
    (
        "generate",
        "checkpointer: {_component_: FullModelHFCheckpointer, safe_serialization: false}",
        ["checkpointer.safe_serialization"],
    ),
    ("generate", "model: {_component_: lora_llama2_7b, lora_attn_modules: [q_proj]}", ["model"]),
]

# Unusual, and right.
RIGHT = [
    "lr_scheduler: {_component_: MultiStepLR, milestones: [0, 5]}",
    "lr_scheduler: {_component_: OneCycleLR, max_lr: 1e-3, epochs: 2, steps_per_epoch: 5, pct_start: 0.2}",
    "optimizer: {_component_: Adafactor, lr: 1e-2, eps: [null, 1e-3], d: 1, beta2_decay: -0.8}",
    "optimizer: {_component_: AdamW, lr: 1e-3, maximize: false, foreach: true, fused: false}",
    "optimizer: {_component_: RMSprop, lr: 1e-3, alpha: 1.5, momentum: 0}",
    "loss: {_component_: CrossEntropyLoss, label_smoothing: 1.0, ignore_index: -100, reduction: sum}",
    "dataset: {_component_: alpaca, split: 'train+test[-5:]', max_seq_len: 2}",
    # its heads have 128 channels unless told, whatever the width
    "model: {_component_: qwen3, vocab_size: 90, num_layers: 2, num_heads: 6, num_kv_heads: 2, embed_dim: 20, "
    "intermediate_dim: 30, max_seq_len: 40}",
]


@pytest.mark.parametrize("extra", RIGHT)
def test_what_is_unusual_is_not_refused(extra: str) -> None:
    assert errors_of("full", extra + "\n") == []


OWN = """
import torch

class Optimizer(torch.optim.SGD):
    def __init__(self, params, lr=1e-3, betas=(1.0,), maximize=False, capturable=False, fused=False, foreach=False):
        super().__init__(params, lr=lr)

class Checkpointer:
    def __init__(self, checkpoint_dir="", safe_serialization=True, adapter_checkpoint=None): ...

def my_dataset(tokenizer, prompt_template="", split="", source="x", max_seq_len=0): ...

def my_model(num_heads=1, num_kv_heads=1, embed_dim=1) -> torch.nn.Module: ...
"""


@pytest.mark.parametrize(
    "extra",
    [
        "optimizer: {_component_: MINE.Optimizer, maximize: true, capturable: true, betas: [2.0]}",
        "optimizer: {_component_: MINE.Optimizer, fused: true, foreach: true}",
        "checkpointer: {_component_: MINE.Checkpointer, checkpoint_dir: c, safe_serialization: false}",
        "checkpointer: {_component_: MINE.Checkpointer, checkpoint_dir: c, adapter_checkpoint: ''}",
        "dataset: {_component_: MINE.my_dataset, prompt_template: 'Q: {q}', split: '80:20', source: ''}",
        "model: {_component_: MINE.my_model, num_heads: 3, num_kv_heads: 2, embed_dim: 5}",
    ],
)
def test_arguments_of_own_components_mean_what_they_mean_there(
    extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_components.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    with trusting("own_components"):
        assert (
            errors_of(
                "full",
                "model_checkpoint: null\n" * ("checkpoint_dir" in extra)
                + extra.replace("MINE", "own_components")
                + "\n",
            )
            == []
        )


@pytest.mark.parametrize(("kinds", "extra", "paths"), TOGETHER)
def test_what_does_not_go_together(kinds: str, extra: str, paths: list[str]) -> None:
    for kind in kinds.split():
        found = errors_of(kind, extra + "\n")
        assert {item.code for item in found} == {"inconsistent"}
        assert sorted(item.path for item in found) == sorted(paths)


# Unusual, and right.
LEGAL = [
    ("full lora", "optimizer: {_component_: SGD, lr: 0, momentum: 0.9, nesterov: true}"),
    ("full lora", "optimizer: {_component_: Adafactor, eps: [null, 1e-3], beta2_decay: -0.8}"),
    ("full lora", "optimizer: bitsandbytes.optim.AdamW8bit\nlr: 1e-5"),
    (
        "full lora",
        "loss: {_component_: CrossEntropyLoss, label_smoothing: 1, ignore_index: -100, reduction: sum}",
    ),
    ("full lora", "fsdp_cpu_offload: true\ndata_parallel_shard_dim: 2\ndata_parallel_replicate_dim: 3"),
    ("full lora", "lr_scheduler: {_component_: OneCycleLR, max_lr: 1e-3, total_steps: 9}"),
    ("full lora", "dataset: {_component_: instruct, source: a, prompt_template: mine.jinja}"),
    (
        "full lora",
        "dataset: {_component_: instruct, source: a, prompt_template: {user: [a, b], assistant: [c, d]}}",
    ),
    (
        "full",
        f"model: {{_component_: gemma, {SIZES}, num_heads: 3, num_kv_heads: 1, head_dim: 8, embed_dim: 31, "
        "intermediate_dim: 7}",
    ),
    ("lora", "optimizer: Muon\nlr: 1e-3"),
    ("lora", "lora_attn_modules: []\napply_lora_to_mlp: true"),
    ("lora", "adapter_checkpoint: ad\nlora_dropout: 0.1\nquantize_base: true"),
    ("lora", "model: {_component_: qlora_llama2_7b, lora_attn_modules: [], apply_lora_to_mlp: true}"),
]


@pytest.mark.parametrize(("kinds", "extra"), LEGAL)
def test_what_is_unusual_and_right(kinds: str, extra: str) -> None:
    for kind in kinds.split():
        assert [str(item.message) for item in errors_of(kind, extra + "\n")] == []


# The same as arguments of a dataset.
OF_A_DATASET = [
    ("mask_history: true", "train_on: last"),
    ("last_turn_only: true", "train_on: last"),
    ("mask_history: false", None),
    ("completion_only_loss: true", "train_on_input: false"),
    ("assistant_only_loss: true", "train_on_input: false"),
    ("mask_prompt: true", "train_on_input: false"),
    ("mask_prompt: false", None),
    ("train_on_inputs: false", "train_on_input"),
    ("train_on_prompt: true", "train_on_input"),
    ("roles_to_train: [gpt]", "train_on_input: false"),
    ("roles_to_train: []", None),
    ("train_on_eos: last", None),
    ("split_thinking: true", None),
    ("packing: true", "packed"),
    ("masking_strategy: train_on_last", None),
    ("filter_fn: my.filters.keep", None),
    ("split_across_pack: true", None),
    ("max_packs: 7", None),
    ("subset: mine", "name"),
]


@pytest.mark.parametrize(("line", "suggestion"), OF_A_DATASET)
def test_other_tools_names_of_a_datasets_arguments(line: str, suggestion: str | None) -> None:
    head = "dataset:\n  _component_: chat\n  source: a.jsonl\n  max_seq_len: 9\n  "
    (error,) = errors_of("full", f"{head}{line}\n")
    assert (error.code, error.suggestion) == ("unknown-argument", suggestion)
    if suggestion is None:
        assert error.message.count(";") >= 1
    else:
        whole = suggestion if ": " in suggestion else line.replace(line.partition(":")[0], suggestion)
        assert errors_of("full", f"{head}{whole}\n") == []


def test_two_names_of_one_argument_are_not_both_replaced() -> None:
    head = "dataset:\n  _component_: chat\n  source: a.jsonl\n  "
    first, second = errors_of("full", f"{head}mask_prompt: true\n  roles_to_train: [assistant]\n")
    assert (first.suggestion, second.suggestion) == ("train_on_input: false", None)
    assert second.message.endswith("another key here means the same: keep one of the two")


# What other tools write, and what is to be written instead; None where nothing can be.
OTHER_TOOLS = [
    ("full", "learning_rate: 1e-4", "lr"),
    ("full", "num_train_epochs: 3", "epochs"),
    ("full", "dataloader_num_workers: 2", "num_workers"),
    ("full", "full_determinism: true", "deterministic"),
    ("full", "dp_shard: 2", "data_parallel_shard_dim"),
    ("full", "async_save: true", "enable_async_checkpointing"),
    ("full", "model_id: ck", "model_checkpoint"),
    ("full", "max_seq_length: 512", "dataset.max_seq_len"),
    ("full", "weight_decay: 0.1", "optimizer.weight_decay"),
    ("full", "bf16: true", None),  # their weights stay in fp32
    ("full", "bf16: false", None),
    ("full", "torch_dtype: bfloat16", "dtype: bf16"),
    ("full", "gradient_checkpointing: true", "enable_activation_checkpointing"),
    ("full", "use_gradient_checkpointing: unsloth", None),
    ("full", "fsdp: full_shard auto_wrap", None),
    ("full", "optim: adamw_torch", "optimizer: AdamW"),
    ("full", "optim: paged_adamw_8bit", "optimizer: bitsandbytes.optim.PagedAdamW8bit"),
    ("full", "lr_scheduler_type: cosine", "lr_scheduler"),
    ("full", "lr_scheduler_type: constant_with_warmup", "lr_scheduler: constant"),
    ("full", "max_train_steps: 100", "max_steps"),
    ("full", "fp16: true", "dtype: fp16"),
    ("full", "mask_prompt: true", "train_on_input: false"),  # means the contrary
    ("full", "completion_only_loss: true", "train_on_input: false"),
    ("full", "completion_only_loss: false", None),
    ("full", "assistant_only_loss: true", "train_on_input: false"),
    ("full", "train_on_prompt: true", "train_on_input"),
    ("full", "train_on_source: false", "train_on_input"),
    ("full", "roles_to_train: [assistant]", "train_on_input: false"),
    ("full", "roles_to_train: [user, assistant, system]", "train_on_input: true"),
    ("full", "roles_to_train: [user]", None),
    ("full", "mask_history: true", "dataset.train_on: last"),
    ("full", "mask_history: false", None),
    ("full", "train_on_last_turn_only: true", "dataset.train_on: last"),
    ("full", "mask_reasoning_content: true", "dataset.train_on_reasoning: false"),
    ("full", "train_on_eos: turn", None),
    ("full", "message_field_training: train", None),
    # The same name, and another meaning, unit or default: said, and left to the user.
    ("full", "lr_scheduler_type: cosine_with_restarts", None),
    ("full", "lr_scheduler_type: cosine_with_min_lr", None),
    ("full", "optim: galore_adamw", None),
    ("full", "optim: adamw_torch_4bit", None),
    ("full", "iters: 100", None),
    ("full", "train_batch_size: 64", None),
    ("full", "global_batch_size: 64", None),
    ("full", "mixed_precision: bf16", None),
    ("full", "precision: bf16", None),
    ("full", "logging_dir: logs", None),
    ("full", "min_lr: 1e-6", None),
    ("full", "steps_per_eval: 10", None),
    ("full", "save_every: 10", None),
    ("full", "sequence_len: 512", None),
    ("full", "data_seed: 3", None),
    ("full", "test_dataset: alpaca", None),
    ("full", "eval_accumulation_steps: 2", None),
    ("full", "neftune_noise_alpha: 5", None),
    ("generate", "max_length: 50", None),
    ("full", "adam_beta1: 0.9", None),
    ("full", "warmup_ratio: 0.03", None),
    ("full", "warmup_steps: 10", None),  # of no schedule
    ("full", "val_set_size: 0.05", "val_split"),
    ("full", "deepspeed: ds.json", None),
    ("full", "tensor_parallel_dim: 2", None),
    ("full", "nproc_per_node: 2", None),
    ("full", "datasets: [{path: a, type: alpaca}]", None),
    ("lora", "r: 8", "lora_rank"),
    ("lora", "lora_r: 8", "lora_rank"),
    ("lora", "alpha: 16", "lora_alpha"),
    ("lora", "target_modules: [q_proj, v_proj]", "lora_attn_modules"),
    ("lora", "target_modules: all-linear", None),
    ("lora", "load_in_4bit: true", "quantize_base"),
    ("lora", "load_in_8bit: true", None),
    ("lora", "adapter_name_or_path: ad", "adapter_checkpoint"),
    ("lora", "save_only_adapter: true", "save_adapter_weights_only"),
    ("generate", "max_tokens: 9", "max_new_tokens"),
    ("generate", "stop_sequences: [a]", "stop"),
]


@pytest.mark.parametrize(("kind", "line", "suggestion"), OTHER_TOOLS)
def test_other_tools_names(kind: str, line: str, suggestion: str | None) -> None:
    key, _, value = line.partition(": ")
    drop = [suggestion] if suggestion in ("model_checkpoint", "lr") else []
    params, base = KINDS[kind]
    text = without(base, *drop) + line + "\n"
    (error,) = resolve(params, text=text).errors
    assert (error.code, error.path, error.suggestion) == ("unknown-key", key, suggestion)
    assert error.source.line == len(text.splitlines())
    if suggestion is None:
        assert error.message.count(";") >= 1  # what to do instead is said all the same
        return
    whole = suggestion if ": " in suggestion else f"{suggestion}: {value}"
    if "." in suggestion.partition(":")[0]:  # of a section: the path says where it goes
        assert resolve(params, text=without(base, *drop), overrides=[whole.replace(": ", "=")]).ok
    else:
        assert resolve(params, text=without(base, *drop) + whole + "\n").ok


def test_a_name_that_is_set_already_is_said_to_be() -> None:
    (error,) = resolve(FullFinetuneParams, text=BASE + "batch_size: 3\nbatchsize: 4\n").errors
    assert (error.path, error.suggestion) == ("batchsize", None)  # it would be there twice
    assert error.message.endswith(
        "did you mean batch_size? It is set already, in line 5: keep one of the two"
    )
    (error,) = resolve(FullFinetuneParams, text=BASE + "batch_size: 3\n", overrides=["batchsize=4"]).errors
    assert error.message.endswith("did you mean batch_size?")  # the command line is there to set it anew


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("  r: 4", "lora_rank"),
        ("  lora_rnk: 4", "lora_rank"),
        ("  lora_rnk: much", None),
    ],
)
def test_misspelt_arguments_of_a_lora_builder(line: str, suggestion: str | None) -> None:
    head = "model:\n  _component_: lora_llama2_7b\n  lora_attn_modules: [q_proj]\n"
    (error,) = errors_of("lora", head + line + "\n")
    assert (error.code, error.suggestion) == ("unknown-argument", suggestion)
    if suggestion:
        assert errors_of("lora", head + re.sub(r"\w+:", f"{suggestion}:", line) + "\n") == []


@pytest.mark.parametrize(
    ("line", "suggestion"),
    [
        ("num_workers: 1_000", None),  # 256 are the most
        ("num_workers: 1_0", "10"),
        ("lora_dropout: '1.0'", None),
        ("lora_attn_modules: q_proj, v_proj", "[q_proj, v_proj]"),
        ("lora_attn_modules: all", None),
        ("epochs: 99999999999999999999", None),  # more than any machine counts
    ],
)
def test_a_suggested_value_is_one_of_the_field(line: str, suggestion: str | None) -> None:
    (error,) = errors_of("lora", line + "\n")
    assert (error.code, error.suggestion) == ("wrong-type", suggestion)
    if suggestion:
        assert errors_of("lora", f"{line.partition(':')[0]}: {suggestion}\n") == []


def test_torchtunes_idle_settings_are_read_with_a_warning() -> None:
    plan = "tensor_parallel_dim: 1\ntensor_parallel_plan:\n  _component_: torchtune.models.llama3.base_llama_tp_plan\n"
    resolution = resolve(FullFinetuneParams, text=BASE + plan + "fsdp:\n  cpu_offload: true\n")
    assert resolution.params is not None
    assert resolution.params.fsdp_cpu_offload is True
    assert [item.code for item in resolution.warnings] == ["no-effect", "no-effect", "renamed-parameter"]
    two = resolve(FullFinetuneParams, text=BASE + plan.replace("1", "2", 1))
    assert [item.path for item in two.errors] == ["tensor_parallel_dim", "tensor_parallel_plan"]
