"""A checkpoint made by transformers is fine-tuned with a config of ours, and is transformers' again afterwards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cases import CASES
from transformers import AutoModelForCausalLM, AutoTokenizer

import tune.models
from tune.cli.main import main

# One config of each of transformers' models; test_families saves every case, test_shipped_configs runs every config.
FIRST = {case.config_class: name for name, case in reversed(CASES.items()) if case.shipped}.values()
FAMILIES = {name: CASES[name].shipped for name in FIRST}


@pytest.fixture(params=FAMILIES, scope="module")
def start(
    request: pytest.FixtureRequest, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """The family's config, and a random checkpoint of the family with its tokenizer."""
    config = CASES[request.param]()
    config.vocab_size = 307
    if getattr(config, "vocab_size_per_layer_input", 307) < 307:
        config.vocab_size_per_layer_input = 307
    config.max_position_embeddings = 512
    torch.manual_seed(11)
    reference = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    directory = tmp_path_factory.mktemp("start")
    reference.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(directory)
    return FAMILIES[request.param], directory


def test_fine_tuned_here_and_loaded_there(
    start: tuple[str, Path], data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, directory = start
    settings = {
        "model": "auto",
        "tokenizer": "auto",
        "model_checkpoint": directory,
        "output_dir": tmp_path / "out",
        "dataset.source": data_file,
        "optimizer": "{_component_: AdamW, lr: 0.01}",
        "lr_scheduler": "null",
        "epochs": 1,
        "max_steps_per_epoch": 3,
        "gradient_accumulation_steps": 1,
        "device": "cpu",
        "dtype": "fp32",
    }
    overrides = [f"{name}={value}" for name, value in settings.items()]
    assert main(["run", "full_finetune", "--config", config, *overrides]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(0 < row["loss"] < 60 for row in rows)
    trained = tmp_path / "out" / "latest" / "model"
    capsys.readouterr()

    # Loaded by the reference, it is the model we trained.
    reference = AutoModelForCausalLM.from_pretrained(trained, attn_implementation="eager").eval()
    untrained = AutoModelForCausalLM.from_pretrained(directory).eval()
    tokens = torch.randint(0, 300, (2, 31), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = reference(tokens).logits
        torch.testing.assert_close(tune.models.from_checkpoint(trained)(tokens), logits, rtol=1e-5, atol=5e-5)
        assert (logits - untrained(tokens).logits).abs().max() > 0.1

    # And it goes on from a prompt exactly as the reference does, over every window and scaled length.
    prompt = "Repeat river: river"
    told = [f"model_checkpoint={trained}", f"prompt={prompt}", "max_new_tokens=60", "ignore_eos=true"]
    assert main(["run", "generate", *told, "temperature=0", "device=cpu", "log_level=WARNING"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(trained)
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    reference.generation_config.eos_token_id = None
    with torch.no_grad():
        continued = reference.generate(ids, max_new_tokens=60, do_sample=False, pad_token_id=0)[
            0, ids.shape[1] :
        ]
    assert len(continued) == 60
    expected = tokenizer.decode(continued, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert capsys.readouterr().out == expected + "\n"
