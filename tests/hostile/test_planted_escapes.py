"""Escapes planted in every kind of file of a stranger: no command lets one through, whatever it has to say of it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tune.cli.main import main

BUNDLED = Path(__file__).parents[2] / "recipes" / "bundled"
EVIL = "x\x1b[2J\x1b]0;owned\x07\u202ey\x9b"
RAW = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
Plant = Callable[[Path], list[str]]
PLANTS: dict[str, Plant] = {}


def plant(function: Plant) -> Plant:
    PLANTS[function.__name__.strip("_")] = function
    return function


def _model(folder: Path, **changes: Any) -> Path:
    model = folder / "model"
    shutil.copytree(BUNDLED / "tiny_llama", model)
    if changes:
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(config | changes))
    return model


def _weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    model = _model(folder)
    weights = load_file(model / "model.safetensors")
    change(weights)
    save_file(weights, model / "model.safetensors")
    return model


def _generate(model: Path, *more: str) -> list[str]:
    return ["generate", f"model_checkpoint={model}", "prompt=hello", "max_new_tokens=1", "device=cpu", *more]


def _train(folder: Path, *more: str, recipe: str = "full_finetune") -> list[str]:
    return [
        *("run", recipe, "--config", f"tiny/{recipe}", f"output_dir={folder / 'out'}", "max_steps=1"),
        *("log_level=INFO", *more),
    ]


def _data(folder: Path, text: str, name: str = "rows.jsonl") -> list[str]:
    (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
    return _train(folder, f"dataset.source={folder / name}")


@plant
def _config_key(folder: Path) -> list[str]:
    (folder / "c.yaml").write_text(json.dumps({"recipe": "full_finetune", EVIL: 1, "lr": EVIL}))
    return ["validate", str(folder / "c.yaml")]


@plant
def _config_recipe(folder: Path) -> list[str]:
    (folder / "c.yaml").write_text(json.dumps({"recipe": EVIL}))
    return ["validate", str(folder / "c.yaml")]


@plant
def _broken_yaml(folder: Path) -> list[str]:
    (folder / "c.yaml").write_text('a: "\\e[2J\nb: [')
    return ["validate", str(folder / "c.yaml")]


@plant
def _dry_run(folder: Path) -> list[str]:
    (folder / "c.yaml").write_text(
        json.dumps({"output_dir": EVIL, "sample_prompts": [EVIL], "generate_every_n_steps": 1})
    )
    shown = ["--config", str(folder / "c.yaml"), "model_checkpoint=bundled:tiny_llama", "lr=1e-3"]
    return ["run", "full_finetune", *shown, "dataset=alpaca", "--dry-run"]


@plant
def _own_recipe(folder: Path) -> list[str]:
    file = folder / "mine.py"
    file.write_text(f"raise ValueError({EVIL!r})\n")
    return ["run", str(file)]


@plant
def _operand(folder: Path) -> list[str]:
    return ["describe", EVIL]


@plant
def _rope_type(folder: Path) -> list[str]:
    return _generate(_model(folder, rope_scaling={"rope_type": EVIL, "factor": 2.0}))


@plant
def _architecture(folder: Path) -> list[str]:
    return _generate(_model(folder, architectures=[EVIL], model_type=EVIL))


@plant
def _model_key(folder: Path) -> list[str]:
    return _generate(_model(folder, **{EVIL: 1, "hidden_size": EVIL}))


@plant
def _tensor_name(folder: Path) -> list[str]:
    return _generate(_weights(folder, lambda weights: weights.update({EVIL: torch.ones(2)})))


@plant
def _tensor_name_converted(folder: Path) -> list[str]:
    model = _weights(folder, lambda weights: weights.update({EVIL: torch.ones(2)}))
    return ["convert-ckpt", str(model), str(folder / "converted")]


@plant
def _index_file(folder: Path) -> list[str]:
    model = _model(folder)
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": f"{EVIL}.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return _generate(model)


@plant
def _pickled_name(folder: Path) -> list[str]:
    model = _model(folder)
    weights: dict[str, Any] = dict(load_file(model / "model.safetensors"))
    (model / "model.safetensors").unlink()
    torch.save(weights | {EVIL: "text"}, model / "pytorch_model.bin")
    return _generate(model)


@plant
def _template_refuses(folder: Path) -> list[str]:
    model = _model(folder)
    (model / "chat_template.jinja").write_text("{{ raise_exception(" + json.dumps(EVIL) + ") }}")
    return _generate(model, "prompt_template=chat")


@plant
def _template_breaks(folder: Path) -> list[str]:
    model = _model(folder)
    (model / "chat_template.jinja").write_text("{% " + EVIL + " %}")
    return _generate(model, "prompt_template=chat")


@plant
def _tokenizer_settings(folder: Path) -> list[str]:
    model = _model(folder)
    settings = {"added_tokens_decoder": {"999999": {"content": EVIL}}, "eos_token": EVIL, "pad_token": EVIL}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    return _generate(model)


@plant
def _added_tokens(folder: Path) -> list[str]:
    model = _model(folder)
    (model / "added_tokens.json").write_text(json.dumps({EVIL: 512, EVIL + "z": 513}))
    return _generate(model)


@plant
def _generation_config(folder: Path) -> list[str]:
    model = _model(folder)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": EVIL}))
    return _generate(model)


@plant
def _json_columns(folder: Path) -> list[str]:
    return _data(folder, json.dumps({EVIL: EVIL}) + "\n")


@plant
def _csv_columns(folder: Path) -> list[str]:
    return _data(folder, f"{EVIL},other\n1,2\n", "rows.csv")


@plant
def _broken_rows(folder: Path) -> list[str]:
    return _data(folder, json.dumps({"instruction": "a", "output": {EVIL: 1}}) + "\n{" + EVIL)


@plant
def _roles(folder: Path) -> list[str]:
    rows = {"messages": [{"role": EVIL, "content": "a"}, {"role": "assistant", "content": "b"}]}
    return [
        *_data(folder, json.dumps(rows) + "\n"),
        "dataset._component_=chat",
        "dataset.prompt_template=chatml",
    ]


@plant
def _tool_calls(folder: Path) -> list[str]:
    calls = [{"function": {"name": EVIL, "arguments": EVIL}}]
    rows = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": calls}]}
    return [
        *_data(folder, json.dumps(rows) + "\n"),
        "dataset._component_=chat",
        "dataset.prompt_template=chatml",
    ]


@plant
def _unused_columns(folder: Path) -> list[str]:
    return _data(folder, json.dumps({"instruction": "a b", "output": "c", EVIL: EVIL}) + "\n")


@plant
def _file_names(folder: Path) -> list[str]:
    (folder / "data").mkdir()
    (folder / "data" / "a\x1b[2J\u202e.jsonl").write_text("nothing\n")
    return _train(folder, f"dataset.source={folder / 'data'}")


@plant
def _adapter_config(folder: Path) -> list[str]:
    adapter = folder / "adapter"
    adapter.mkdir()
    settings = {
        "peft_type": EVIL,
        "base_model_name_or_path": EVIL,
        "target_modules": [EVIL],
        "r": 2,
        EVIL: EVIL,
    }
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    save_file({EVIL: torch.ones(2, 2)}, adapter / "adapter_model.safetensors")
    return ["merge", str(adapter), "--to", str(folder / "merged"), "--base", str(_model(folder))]


@plant
def _adapter_modules(folder: Path) -> list[str]:
    adapter = folder / "adapter"
    adapter.mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": EVIL, "target_modules": [EVIL], "r": 2}
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    save_file({EVIL: torch.ones(2, 2)}, adapter / "adapter_model.safetensors")
    return _generate(_model(folder), f"adapter_checkpoint={adapter}")


@plant
def _saved_step(folder: Path) -> list[str]:
    step = folder / "out" / "step_000001"
    (step / "model").mkdir(parents=True)
    (step / "state").mkdir()
    manifest = {"version": 1, "files": {EVIL: {"size": 1, "sha256": EVIL}, "state/run.pt": EVIL}}
    (step / "manifest.json").write_text(json.dumps(manifest))
    return _train(folder, "resume_from_checkpoint=true")


@plant
def _foreign_config(folder: Path) -> list[str]:
    (folder / "out").mkdir()
    (folder / "out" / "config.yaml").write_text(f"# {EVIL}\n")
    (folder / "out" / EVIL.replace("\x9b", "")).write_text("")
    return _train(folder)


@pytest.mark.parametrize("kind", PLANTS)
def test_no_planted_escape_reaches_the_terminal(
    kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = main(PLANTS[kind](tmp_path))
    said = capfd.readouterr()
    assert (said.out + said.err).strip()
    assert not (found := RAW.search(said.out + said.err)), (said.out + said.err)[
        max(0, found.start() - 80) : found.end() + 40
    ]
    assert code in (0, 1, 2)
    assert "Traceback" not in said.err or kind == "own_recipe"
