"""Many processes train as one: losses, gradients and weights are those of one process on the same global batch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.distilling import CASES as DISTILLED
from tests.distributed.distilling import LOSSES, distil_alone
from tests.distributed.launching import launch
from tune.checkpoints import save_model
from tune.models.gemma4 import GEMMA4
from tune.models.gpt_oss import GPT_OSS
from tune.models.llama2 import llama2
from tune.models.mixtral import MIXTRAL
from tune.models.muse_glimmer import MUSE_GLIMMER
from tune.models.qwen3_5 import qwen3_5
from tune.modules import ClampedSwiGLU, DecoderConfig, MoEConfig, TransformerDecoder
from tune.recipes.full_finetune import recipe_main as full_finetune
from tune.recipes.lora_finetune import recipe_main as lora_finetune
from tune.recipes.params.full_finetune import FullFinetuneParams
from tune.recipes.params.lora_finetune import LoraFinetuneParams
from tune.tokenizers import SentencePieceTokenizer

# With plain SGD the weights are the starting weights less the sum of the gradients: they differ where gradients do.
SGD = {"_component_": "torch.optim.SGD", "lr": 0.05}
ROUNDED = {"_component_": "tune.modules.optim.AdamW", "lr": 0.001}
GLOBAL_BATCH = 4
EXPERTS = DecoderConfig(
    vocab_size=600,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    embed_dim=24,
    head_dim=6,
    intermediate_dim=40,
    max_seq_len=64,
    moe=MoEConfig(num_experts=5, experts_per_token=2, intermediate_dim=40),
)
SINKS = replace(
    EXPERTS,
    attn_bias="all",
    attn_sinks=True,
    sliding_window=7,
    sliding_layers=(0,),
    moe=MoEConfig(5, 2, 40, bias=True, clamped=ClampedSwiGLU(limit=0.5)),
)
SHARING = GEMMA4.read_hf_config(
    {
        "vocab_size": 600,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "global_head_dim": 8,
        "num_kv_shared_layers": 2,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 4,
        "vocab_size_per_layer_input": 602,
        "sliding_window": 5,
        "max_position_embeddings": 64,
        "rms_norm_eps": 0.05,
    }
)
GATES = MUSE_GLIMMER.read_hf_config(
    {
        "vocab_size": 600,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 6,
        "sliding_window": 5,
        "max_position_embeddings": 64,
        "post_norm_eps": 0.01,
    }
)
# More than the models have spare rows, and one that is a word of the data.
NEW_TOKENS = {"_component_": "auto", "add_tokens": ["river seven", *(f"<{number}>" for number in range(9))]}
FULL: dict[str, dict[str, Any]] = {
    "accumulated": {
        "base": "tied",
        "gradient_accumulation_steps": 3,
        "clip_grad_norm": 0.5,
        "sample_prompts": ["river seven"],
        "generate_every_n_steps": 4,
    },
    "untied": {"base": "untied", "custom_sharded_layers": ["tok_embeddings"], "num_workers": 2},
    "whole_copies": {"base": "untied", "enable_fsdp": False, "gradient_accumulation_steps": 3},
    "experts": {"base": "sinks", "enable_activation_checkpointing": True},
    "packed": {"base": "tied", "packed": True},
    "states": {"base": "states", "packed": True, "enable_activation_checkpointing": True},
    # Scores are divided by nothing: rounding grows faster than elsewhere.
    "sharing": {
        "base": "sharing",
        "packed": True,
        "enable_activation_checkpointing": True,
        "optimizer": {**SGD, "lr": 0.005},
    },
    "weighted": {"base": "tied", "weighted": True},
    # Each process takes every second row, so that in their order the rows of a step are those of one process.
    "streamed": {"base": "tied", "streamed": True, "shuffle": False, "max_steps": 11},
    "mixed": {"base": "tied", "mixed": True, "mix_until": "all_exhausted"},
    "recomputed": {"base": "gates", "enable_activation_checkpointing": True, "optimizer_in_bwd": True},
    "adamw": {"base": "tied", "optimizer": {"_component_": "torch.optim.AdamW", "lr": 0.003}},
    "rounded": {"base": "untied", "dtype": "bf16", "optimizer": ROUNDED},
    "rounded_in_backward": {
        "base": "untied",
        "dtype": "bf16",
        "optimizer": ROUNDED,
        "optimizer_in_bwd": True,
    },
    "from_scratch": {"base": "scratch"},
    "bf16": {"base": "untied", "dtype": "bf16", "param_dtype": "fp32", "optimizer": {**SGD, "lr": 0.005}},
    "new_tokens": {"base": "untied", "tokenizer": NEW_TOKENS},
}
LORA: dict[str, dict[str, Any]] = {
    "lora": {"base": "tied", "apply_lora_to_mlp": True, "weighted": True},
    "lora_output": {"base": "untied", "apply_lora_to_output": True, "gradient_accumulation_steps": 3},
    "dora": {"base": "untied", "use_dora": True},
    "qlora": {"base": "untied", "quantize_base": True},
    "lora_sharing": {
        "base": "sharing",
        "lora_attn_modules": ["q_proj", "k_proj", "per_layer_input_gate", "per_layer_model_projection"],
        "apply_lora_to_mlp": True,
        "optimizer": {**SGD, "lr": 0.01},
    },
    "lora_states": {
        "base": "states",
        "lora_attn_modules": ["q_proj", "in_proj_qkv", "in_proj_a", "out_proj"],
    },
    "lora_experts": {"base": "experts", "apply_lora_to_mlp": True},
    "lora_sinks": {"base": "sinks", "apply_lora_to_mlp": True, "packed": True},
    "lora_in_backward": {
        "base": "gates",
        "lora_attn_modules": ["q_proj", "gate_proj"],
        "optimizer_in_bwd": True,
    },
    "lora_new_tokens": {"base": "untied", "tokenizer": NEW_TOKENS},
}
# Four processes on two cores are slow: what a mesh of two dimensions and a rank without targets could change.
WITH_FOUR = ("accumulated", "packed", "lora_output")
RESUMED = ("rounded", "rounded_in_backward")
# Of losses (relative) and weights. Sums in another order: fp32 rounds at 6e-8, AdamW divides small gradients by their
# size, and bf16's products round at 4e-3 wherever a sum falls on the other side of a step, as bf16's weights do.
TOLERANCES = {
    "bf16": (2e-3, 4e-3),
    "adamw": (2e-5, 2e-4),
    "rounded": (5e-3, 2e-2),
    "rounded_in_backward": (5e-3, 2e-2),
}
SHARDED_LORA = {
    name: LORA[name]
    for name in ("lora_output", "dora", "lora_new_tokens", "lora_experts", "lora_sinks", "lora_sharing")
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, spm_file: Path) -> dict[str, Path]:
    """Random models, tied, untied and with experts, with their tokenizer."""
    made = {
        "tied": lambda: llama2(
            600, 2, 4, 24, 64, num_kv_heads=2, intermediate_dim=41, tie_word_embeddings=True
        ),
        "untied": lambda: llama2(601, 2, 4, 24, 64, num_kv_heads=2, intermediate_dim=40),
        "experts": lambda: TransformerDecoder(EXPERTS, MIXTRAL),
        "sinks": lambda: TransformerDecoder(SINKS, GPT_OSS),
        "sharing": lambda: TransformerDecoder(SHARING, GEMMA4),
        "gates": lambda: TransformerDecoder(GATES, MUSE_GLIMMER),
        "states": lambda: qwen3_5(600, 4, 4, 2, 24, 40, 64, 8, 4, 2, 6, norm_eps=1e-2),
    }
    folders = {}
    for seed, (name, make) in enumerate(made.items()):
        torch.manual_seed(seed)
        model = make()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        folders[name] = tmp_path_factory.mktemp(name)
        save_model(model, folders[name], tokenizer=SentencePieceTokenizer(spm_file))
    return folders


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 questions with answers of 1 to 9 words: four processes at one each end with two that have nothing."""
    path = tmp_path_factory.mktemp("data") / "questions.jsonl"
    words = ["apple", "river", "seven", "twelve", "green", "walk"]
    rows = [
        {"question": " ".join(words[: 1 + i % 5]), "answer": " ".join((words * 2)[: 1 + 4 * i % 9])}
        for i in range(18)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # The same as conversations, of which a third have a weight, so that not every process has some at a time.
    with (path.parent / "weighted.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            answer = {"role": "assistant", "content": row["answer"]} | (
                {} if number % 3 else {"weight": 0.25}
            )
            asked = {"role": "user", "content": row["question"]}
            file.write(json.dumps({"messages": [asked, answer]}) + "\n")
    return path


class Runs:
    """Every run, described once, for any number of processes."""

    def __init__(self, bases: dict[str, Path], data_file: Path, spm_file: Path, out: Path) -> None:
        self._bases, self._data_file, self._spm_file, self._out = bases, data_file, spm_file, out

    def values(self, case: dict[str, Any], name: str, world_size: int) -> dict[str, Any]:
        changes = dict(case)
        base, packed = changes.pop("base"), changes.pop("packed", False)
        if world_size == 1:
            changes.pop("num_workers", None)  # they change no batch, and their server takes seconds to start
        dataset = {"_component_": "tune.datasets.instruct_dataset", "source": str(self._data_file)}
        if changes.pop("weighted", False):
            source = str(self._data_file.parent / "weighted.jsonl")
            dataset = {
                "_component_": "tune.datasets.chat_dataset",
                "source": source,
                "prompt_template": "plain",
            }
        packing = {"packed": True, "max_seq_len": 50} if packed else {}
        streaming = {"streaming": True, "max_seq_len": 64} if changes.pop("streamed", False) else {}
        trained: Any = dataset | packing | streaming
        if changes.pop("mixed", False):
            trained = [{**dataset, "weight": 2}, {**dataset, "split": "train[:5]", "weight": 1}]
        values: dict[str, Any] = {
            "output_dir": str(self._out / f"{name}_{world_size}"),
            "dataset": trained,
            # Fewer packs than examples: more of them are fillers.
            "batch_size": GLOBAL_BATCH // world_size,
            # Nine steps or more, over both ends of epochs.
            "epochs": 2 + 4 * packed + 3 * (changes.get("gradient_accumulation_steps", 1) > 1),
            "optimizer": SGD,
            "dtype": "fp32",
            "device": "cpu",
            "seed": 3,
            "log_level": "WARNING",
            "save_every_epoch": False,
            "dataset_val": {**dataset, "split": "train[:7]"},
        }
        if base == "scratch":
            sizes = {"vocab_size": 602, "num_layers": 2, "num_heads": 4, "embed_dim": 24, "max_seq_len": 64}
            values |= {
                "model": {"_component_": "tune.models.llama2.llama2", **sizes},
                "train_from_scratch": True,
                "tokenizer": {
                    "_component_": "tune.models.llama2.llama2_tokenizer",
                    "path": str(self._spm_file),
                },
            }
        else:
            values["model_checkpoint"] = str(self._bases[base])
        return values | changes

    def distillation(self) -> dict[str, Any]:
        """Return what all distillations have in common."""
        dataset = {"_component_": "tune.datasets.instruct_dataset", "source": str(self._data_file)}
        return {
            "dataset": dataset,
            "dataset_val": {**dataset, "split": "train[:5]"},
            "model_checkpoint": str(self._bases["tied"]),
            "teacher_checkpoint": str(self._bases["untied"]),
            "optimizer": SGD,
            "dtype": "fp32",
            "device": "cpu",
            "seed": 3,
            "log_level": "WARNING",
        }

    def output(self, name: str, world_size: int) -> Path:
        return self._out / f"{name}_{world_size}"


@pytest.fixture(scope="module")
def runs(
    bases: dict[str, Path], data_file: Path, spm_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    made = Runs(bases, data_file, spm_file, tmp_path_factory.mktemp("runs"))
    for name, case in FULL.items():
        assert full_finetune(FullFinetuneParams(**made.values(case, name, 1))) == 0
    for name, case in LORA.items():
        values = made.values(case, name, 1) | {"lora_rank": 3, "save_adapter_weights_only": True}
        assert lora_finetune(LoraFinetuneParams(**values)) == 0
    return made


def rows_of(output_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output_dir / "metrics.jsonl").read_text().splitlines()]


def assert_same_training(one: Path, many: Path, rel: float, atol: float) -> None:
    ours, theirs = rows_of(many), rows_of(one)
    assert len(ours) == len(theirs) >= 9
    for our, their in zip(ours, theirs, strict=True):
        for key in ("step", "epoch", "num_tokens", "num_trained_tokens"):
            assert our[key] == their[key]
        assert our.keys() == their.keys()
        for key in {"loss", "val_loss", "grad_norm"} & our.keys():
            assert our[key] == pytest.approx(their[key], rel=10 * rel if key == "grad_norm" else rel), key
    assert "val_loss" in ours[-1]
    if (one / "samples.jsonl").exists():
        assert (one / "samples.jsonl").read_text() == (many / "samples.jsonl").read_text()
    assert_same_weights(one, many, atol)


def assert_same_distillation(one: Path, many: Path) -> None:
    assert_same_weights(one, many, 3e-6)
    ours, theirs = rows_of(many), rows_of(one)
    assert len(ours) == len(theirs) == 4
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys() >= {"kd_loss", "ce_loss"}
        assert our["num_trained_tokens"] == their["num_trained_tokens"]
        for key in our.keys() & LOSSES:
            assert our[key] == pytest.approx(their[key], rel=1e-5, abs=1e-6), key
    assert ours[-1].keys() >= LOSSES


def assert_same_weights(one: Path, many: Path, atol: float) -> None:
    files = [path.relative_to(one) for path in one.glob("latest/*/*.safetensors")]
    assert files
    for file in files:
        mine, reference = load_file(many / file), load_file(one / file)
        assert mine.keys() == reference.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], reference[name], rtol=0, atol=atol, msg=f"{file}: {name}")


@pytest.mark.parametrize("world_size", [2, 4])
def test_many_processes_train_as_one(runs: Runs, tmp_path: Path, world_size: int) -> None:
    listed = []
    full, lora, sharded_lora = (
        {name: case for name, case in cases.items() if world_size == 2 or name in WITH_FOUR}
        for cases in (FULL, LORA, SHARDED_LORA)
    )
    for name, case in full.items():
        values = runs.values(case, name, world_size)
        if world_size == 4 and values.get("enable_fsdp", True):
            values["data_parallel_replicate_dim"] = 2  # both dimensions of the mesh
        listed.append({"recipe": "full_finetune", "values": values})
    common = {"lora_rank": 3, "save_adapter_weights_only": True}
    for name, case in lora.items():
        listed.append({"recipe": "lora_finetune", "values": runs.values(case, name, world_size) | common})
    for name, case in sharded_lora.items():
        values = runs.values(case, f"sharded_{name}", world_size) | common
        values |= {"data_parallel_shard_dim": 2, "data_parallel_replicate_dim": world_size // 2}
        listed.append({"recipe": "lora_finetune", "values": values})
    # Rounding by chance goes on as it would have: stopped and resumed, on processes that shard.
    for name in RESUMED if world_size == 2 else ():
        values = {**runs.values(full[name], name, 2), "output_dir": str(runs.output(f"resumed_{name}", 2))}
        listed.append({"recipe": "full_finetune", "values": {**values, "max_steps": 4}})
        listed.append({"recipe": "full_finetune", "values": {**values, "resume_from_checkpoint": True}})
    if world_size == 2:
        listed += distil_alone(runs.distillation(), tmp_path)
    (tmp_path / "runs.json").write_text(json.dumps(listed))
    done = launch(world_size, Path(__file__).with_name("many_runs.py"), str(tmp_path / "runs.json"))
    assert done.returncode == 0, done.stderr
    for name in (*full, *lora):
        rel, atol = TOLERANCES.get(name, (1e-5, 3e-6))
        assert_same_training(runs.output(name, 1), runs.output(name, world_size), rel, atol)
    for name in RESUMED if world_size == 2 else ():
        assert_same_weights(runs.output(name, 2), runs.output(f"resumed_{name}", 2), 0.0)
    for name in sharded_lora:
        assert_same_training(runs.output(name, 1), runs.output(f"sharded_{name}", world_size), 1e-5, 3e-6)
    for name in DISTILLED if world_size == 2 else ():
        assert_same_distillation(tmp_path / f"{name}_1", tmp_path / f"{name}_2")
