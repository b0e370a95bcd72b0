"""Every shipped config is valid, and each takes a real training step with its model shrunk."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from tune.checkpoints import save_model
from tune.cli.catalogue import Recipe, find_recipe, list_configs, read_recipe_key
from tune.cli.main import main
from tune.config import resolve
from tune.hub.short_names import repository_of
from tune.models.lfm2 import lfm2
from tune.models.llama2 import llama2, llama2_tokenizer
from tune.models.muse_glimmer import MUSE_GLIMMER
from tune.models.qwen3_5 import qwen3_5
from tune.modules import TransformerDecoder

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
FILES = sorted(CONFIGS.rglob("*.y*ml"))
ON_PAIRS = ("preference_finetune", "reward_finetune")
NAMES = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in FILES]
SIZES = {
    "vocab_size": 600,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 24,
    "intermediate_dim": 40,
    "max_seq_len": 192,
}

# Of layers that keep a state instead of attending.
STATES = {
    **SIZES,
    "num_layers": 4,
    "head_dim": 8,
    "num_state_heads": 4,
    "num_state_key_heads": 2,
    "state_head_dim": 6,
}
CONVOLUTIONS = {**SIZES, "num_layers": 3}
# Of attention whose gate has a matrix of its own; of these sizes there is no builder.
GATES = {
    "vocab_size": 600,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "hidden_size": 24,
    "head_dim": 6,
    "intermediate_size": 40,
    "max_position_embeddings": 192,
}


def config_text(name: str) -> str:
    return (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")


def recipe_of(name: str) -> Recipe:
    recipe = find_recipe(read_recipe_key(CONFIGS / f"{name}.yaml") or "")
    assert recipe is not None
    return recipe


def test_the_catalogue_lists_every_file() -> None:
    # A walk of the folder that shares nothing with the catalogue's: a config it misses would never be validated.
    on_disk = sum(name.endswith((".yaml", ".yml")) for _, _, names in os.walk(CONFIGS) for name in names)
    assert on_disk == len(FILES) == len(list_configs())
    assert {
        "llama2/7B_full",
        "alpaca_llama2_full_finetune",
        "alpaca_llama2_finetune",
        "tiny/full_finetune",
        "tiny/lora_finetune",
        "llama2/7B_lora",
        "llama2/7B_lora_single_device",
        "llama2/7B_qlora_single_device",
        "llama3_1/8B_lora",
        "alpaca_llama2_lora_finetune",
    } <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_config_is_valid(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", name, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    # Only an optional package may be missing here.
    assert {warning["code"] for warning in report["warnings"]} <= {"not-installed"}
    assert main(["validate", name]) == 0
    assert name in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [name for name in NAMES if "tune download" in (CONFIGS / f"{name}.yaml").read_text()]
)
def test_what_the_comment_downloads_is_what_the_config_reads(name: str) -> None:
    text = (CONFIGS / f"{name}.yaml").read_text()
    (short_name,) = re.findall(r"^# Weights: tune download (\S+)$", text, re.M)
    assert f"tune run {recipe_of(name).name} --config {name}\n" in text
    repository, revision = repository_of(short_name)
    assert revision is None
    folder = resolve_values(name).checkpointer.kwargs["checkpoint_dir"]
    assert folder == f"checkpoints/{repository.rpartition('/')[2]}"


@pytest.fixture(scope="module")
def shrunk_checkpoint(tmp_path_factory: pytest.TempPathFactory, spm_file: Path) -> Path:
    directory = tmp_path_factory.mktemp("shrunk")
    torch.manual_seed(0)
    tokenizer = llama2_tokenizer(str(spm_file))
    save_model(llama2(**SIZES), directory / "llama2", tokenizer=tokenizer)
    save_model(qwen3_5(**STATES), directory / "qwen3_5", tokenizer=tokenizer)
    save_model(lfm2(**CONVOLUTIONS), directory / "lfm2", tokenizer=tokenizer)
    gates = TransformerDecoder(MUSE_GLIMMER.read_hf_config(GATES), MUSE_GLIMMER)
    save_model(gates, directory / "auto", tokenizer=tokenizer)
    return directory


@pytest.fixture(scope="module")
def alpaca_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("alpaca") / "data.json"
    rows = [
        {
            "instruction": "Add the numbers.",
            "input": f"{n} and {n + 3}",
            "output": f"It is {2 * n + 3}.",
            "text": f"{n} apples",
        }
        for n in range(7)
    ]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def pairs_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "data.json"
    rows = [
        {"prompt": f"Add {n} and {n + 3}.", "chosen": f"It is {2 * n + 3}.", "rejected": f"It is {n}."}
        for n in range(7)
    ]
    path.write_text(json.dumps(rows))
    return path


@pytest.fixture(scope="module")
def steps_taken() -> dict[tuple[str, str], Path]:
    """The output directories of runs, by the recipe and the values that were resolved for it."""
    return {}


@pytest.mark.parametrize("name", [name for name in NAMES if recipe_of(name).name != "evaluate"])
def test_shipped_config_takes_a_step(
    name: str,
    shrunk_checkpoint: Path,
    alpaca_file: Path,
    pairs_file: Path,
    spm_file: Path,
    tmp_path: Path,
    steps_taken: dict[tuple[str, str], Path],
) -> None:
    """Configs that come to the same values with a shrunk model, as most sizes of a model do, share the run."""
    # Its matrices must be there to be adapted.
    builder, sizes = ("qwen3_5", STATES) if "in_proj_qkv" in config_text(name) else ("llama2", SIZES)
    if "in_proj, " in config_text(name):
        builder, sizes = "lfm2", CONVOLUTIONS
    if "gate_proj" in config_text(name):
        builder, sizes = "auto", {}
    overrides = [
        f"model={{_component_: {builder}, "
        + ", ".join(f"{key}: {value}" for key, value in sizes.items())
        + "}",
        f"tokenizer.path={spm_file}",
        f"dataset.source={pairs_file if recipe_of(name).name in ON_PAIRS else alpaca_file}",
        "device=cpu",
        "dtype=fp32",
        "epochs=1",
        "max_steps_per_epoch=1",
        "enable_activation_offloading=false",
    ]
    if "train_from_scratch: true" not in config_text(name):
        overrides.append(f"model_checkpoint={shrunk_checkpoint / builder}")
    optimizer = resolve_values(name).optimizer.path
    if optimizer.startswith("bitsandbytes") and importlib.util.find_spec("bitsandbytes") is None:
        overrides.append("optimizer._component_=torch.optim.AdamW")
    recipe = recipe_of(name)
    if recipe.name == "distill":
        overrides += [f"teacher_checkpoint={shrunk_checkpoint / builder}", f"teacher_{overrides[0]}"]
    resolved = resolve_values(name, *overrides, "output_dir=out")
    run = (recipe.name, repr(resolved))
    if run not in steps_taken:
        overrides.append(f"output_dir={tmp_path / 'out'}")
        assert main(["run", recipe.name, "--config", name, *overrides]) == 0
        steps_taken[run] = tmp_path / "out"
    (row,) = (json.loads(line) for line in (steps_taken[run] / "metrics.jsonl").read_text().splitlines())
    assert row["step"] == 1
    assert 0 < row["loss"] < 20
    assert (steps_taken[run] / "latest" / "model" / "model.safetensors").is_file()


@cache
def resolve_values(name: str, *overrides: str):
    resolution = resolve(recipe_of(name).load_params(), config=CONFIGS / f"{name}.yaml", overrides=overrides)
    assert resolution.ok
    return resolution.params
