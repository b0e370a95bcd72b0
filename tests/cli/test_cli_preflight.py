"""`tune validate --preflight` and memory: the plan of the very run, without its weights."""

from __future__ import annotations

import re
from pathlib import Path


def memory_of(text: str) -> tuple[str, float]:
    """Return what the line about memory says, its wrapping undone, and the GiB predicted."""
    words = " ".join(text[text.index("memory ") :].split())
    found = re.search(r"memory ([\d.]+) GiB predicted", words)
    assert found is not None, words
    return words, float(found[1])


def test_a_small_run_fits(tune) -> None:
    outcome = tune("validate", "tiny/full_finetune", "tokenizer.max_seq_len=64", "--preflight")
    assert outcome.code == 0
    words, gib = memory_of(outcome.out)
    assert "available on cpu: fits (32 x 64 tokens, tokenizer.max_seq_len)" in words
    assert 0.1 < gib < 0.3
    assert "What would need less" not in outcome.out


def test_settings_change_what_is_predicted(tune) -> None:
    words = ("validate", "tiny/lora_finetune", "tokenizer.max_seq_len=512", "--preflight")
    plain = memory_of(tune(*words, "batch_size=64").out)[1]
    recomputed = memory_of(tune(*words, "batch_size=64", "enable_activation_checkpointing=true").out)[1]
    assert recomputed < 0.7 * plain


def test_what_fits_no_machine_is_shown_part_by_part(tune, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    weights = tmp_path / "checkpoints/Llama-2-70b-hf"
    weights.mkdir(parents=True)
    (weights / "tokenizer.model").write_bytes(b"")
    outcome = tune("validate", "llama2/70B_full", "device=cpu", "dataset.source=a.jsonl", "--preflight")
    assert outcome.code == 0  # memory alone is a prediction, and refuses nothing
    assert "it will probably run out of memory" in memory_of(outcome.out)[0]
    assert re.search(r"\nweights, 68\.98B +128\.4\d", outcome.out)
    assert "\n  tune run lora_finetune quantize_base=true: -" in outcome.out


def test_a_model_that_is_not_here_yet_is_no_problem_of_memory(tune) -> None:
    outcome = tune("validate", "tiny/lora_finetune", "model_checkpoint=nowhere", "--preflight")
    assert outcome.code == 2
    assert "nowhere does not exist" in outcome.out
    assert "predicted" not in outcome.out


def test_generation_needs_its_weights(tune, tmp_path: Path) -> None:
    config = tmp_path / "ask.yaml"
    config.write_text("recipe: generate\nmodel_checkpoint: bundled:tiny_llama\nprompt: hi\ndevice: cpu\n")
    outcome = tune("validate", str(config), "--preflight")
    assert outcome.code == 0
    assert "GiB of weights; " in outcome.out
