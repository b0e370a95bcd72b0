from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import warm_python
from tune.checkpoints import save_model
from tune.cli.main import main
from tune.errors import CheckpointError, ConfigError, GenerationError
from tune.generation import generate_text
from tune.models.llama2 import llama2
from tune.recipes.generate import recipe_main
from tune.recipes.params.generate import GenerateParams
from tune.tokenizers import SentencePieceTokenizer

ROOT = Path(__file__).resolve().parent.parent.parent
MAX_SEQ_LEN = 61


@pytest.fixture(scope="module")
def tokenizer(spm_file: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(spm_file)


@pytest.fixture(scope="module")
def model(tokenizer: SentencePieceTokenizer) -> Any:
    torch.manual_seed(8)
    model = llama2(
        vocab_size=tokenizer.vocab_size,
        num_layers=2,
        num_heads=3,
        embed_dim=24,
        max_seq_len=MAX_SEQ_LEN,
        intermediate_dim=44,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope="module")
def model_dir(
    model: Any, tokenizer: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run's output directory with one saved step."""
    step = tmp_path_factory.mktemp("run") / "step_000123"
    save_model(model, step / "model", tokenizer=tokenizer)
    (step.parent / "latest").symlink_to(step.name)
    return step / "model"


def run(model_dir: Path, **settings: Any) -> int:
    params = GenerateParams(**{"model_checkpoint": str(model_dir), "device": "cpu", **settings})
    return recipe_main(params)


def test_the_completion_alone_goes_to_stdout(
    model: Any, tokenizer: SentencePieceTokenizer, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = generate_text(model, tokenizer, "the cat", max_new_tokens=20)
    for path in (model_dir, model_dir.parent, model_dir.parent.parent / "latest", model_dir.parent.parent):
        assert run(path, prompt="the cat", max_new_tokens=20, temperature=0.0) == 0
        out, err = capsys.readouterr()
        assert out == expected + "\n"
        assert "20 tokens" in err
        assert "tokens/s" in err
        assert "max_new_tokens was reached" in err
        assert "Loaded" in err


def test_sampling_repeats_with_its_seed_and_tells_the_seed(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"prompt": "the cat", "max_new_tokens": 20, "temperature": 1.0, "top_k": 200, "top_p": 0.99}
    outputs = []
    for seed in (5, 5, 6):
        run(model_dir, seed=seed, **settings)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    run(model_dir, **settings)
    out, err = capsys.readouterr()
    seed = int(err.partition("seed=")[2].split()[0])
    run(model_dir, seed=seed, **settings)
    assert capsys.readouterr().out == out


def test_settings_that_do_nothing_are_named(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(model_dir, prompt="the", max_new_tokens=2, top_p=0.5)
    assert "do nothing at temperature 0" in capsys.readouterr().err


def test_stop_texts_templates_and_eos(
    model: Any, tokenizer: SentencePieceTokenizer, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = generate_text(model, tokenizer, "Question: the cat\nAnswer:", max_new_tokens=25, ignore_eos=True)
    settings = {"prompt": "the cat", "prompt_template": "question_answer", "max_new_tokens": 25}
    run(model_dir, ignore_eos=True, **settings)
    assert capsys.readouterr().out == whole + "\n"
    run(model_dir, ignore_eos=True, stop=["unseen", whole[5:8]], enable_kv_cache=False, **settings)
    out, err = capsys.readouterr()
    assert out == whole[: whole.index(whole[5:8])] + "\n"
    assert "a stop text came" in err


def test_an_own_template_ends_the_answer_as_in_training(
    model: Any, tokenizer: SentencePieceTokenizer, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = generate_text(model, tokenizer, "<the cat>", max_new_tokens=25)
    template = {"user": ["<", ">"], "assistant": ["", whole[4:6] + "\n"]}
    run(model_dir, prompt="the cat", prompt_template=template, max_new_tokens=25)
    assert capsys.readouterr().out == whole[: whole.index(whole[4:6].strip())] + "\n"


def test_a_file_of_prompts_and_a_file_of_answers(
    model: Any,
    tokenizer: SentencePieceTokenizer,
    model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "the cat", "id": 7}\n{"prompt": "a rat\\nate"}\n')
    answers = tmp_path / "out" / "answers.jsonl"
    run(model_dir, prompt_file=str(prompts), output_file=str(answers), max_new_tokens=9)
    first, second = (
        generate_text(model, tokenizer, text, max_new_tokens=9) for text in ("the cat", "a rat\nate")
    )
    assert capsys.readouterr().out == f"=== 1 of 2: the cat\n{first}\n=== 2 of 2: a rat\n{second}\n"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [row["completion"] for row in rows] == [first, second]
    assert rows[0]["source"] == {"id": 7}
    assert rows[1] == {
        "prompt": "a rat\nate",
        "completion": second,
        "num_tokens": 9,
        "stop_reason": "max_new_tokens",
    }
    # The answer to a prompt does not depend on the prompts before it, nor on those it is answered with.
    run(model_dir, prompt_file=str(prompts), max_new_tokens=9, temperature=1.0, seed=30)
    both, err = capsys.readouterr()
    assert "2 answers of 18 tokens" in err
    run(model_dir, prompt_file=str(prompts), max_new_tokens=9, temperature=1.0, seed=30, batch_size=1)
    assert capsys.readouterr().out == both
    run(model_dir, prompt="a rat\nate", max_new_tokens=9, temperature=1.0, seed=31)
    assert both.endswith(capsys.readouterr().out)
    with pytest.raises(GenerationError, match="would be overwritten"):
        run(model_dir, prompt_file=str(prompts), output_file=str(prompts))


def test_every_prompt_is_looked_at_before_the_first_is_answered(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("the cat\n" + "rat " * 200 + "\n")
    with pytest.raises(GenerationError, match=rf"prompt 2 of 2 .* max_seq_len is {MAX_SEQ_LEN}"):
        run(model_dir, prompt_file=str(prompts))
    assert capsys.readouterr().out == ""


def test_a_prompt_from_standard_input(
    model: Any,
    tokenizer: SentencePieceTokenizer,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("the\ncät\n".encode())))
    run(model_dir, prompt="-", max_new_tokens=9)
    assert capsys.readouterr().out == generate_text(model, tokenizer, "the\ncät", max_new_tokens=9) + "\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff")))
    with pytest.raises(GenerationError, match="standard input is not UTF-8"):
        run(model_dir, prompt="-")


def test_what_cannot_be_done_is_explained(model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no folder"):
        run(tmp_path / "nowhere", prompt="a")
    with pytest.raises(
        GenerationError, match=rf"has \d+ tokens, but the model's max_seq_len is {MAX_SEQ_LEN}"
    ):
        run(model_dir, prompt="cat " * 100)
    with pytest.raises(ConfigError, match="stop holds an empty text"):
        run(model_dir, prompt="a", stop=[""])
    with pytest.raises(ConfigError, match="there is no prompt template 'nosuch'"):
        run(tmp_path / "nowhere", prompt="a", prompt_template="nosuch")  # before any weights are looked for
    with pytest.raises(GenerationError, match="cannot be written"):
        run(model_dir, prompt="a", output_file=str(model_dir / "config.json" / "out.jsonl"))
    kept = tmp_path / "earlier.jsonl"
    earlier = '{"prompt": "earlier"}\n'
    kept.write_text(earlier)
    with pytest.raises(CheckpointError):
        run(tmp_path / "nowhere", prompt="a", output_file=str(kept))
    assert kept.read_text() == earlier
    run(model_dir, prompt="a", max_new_tokens=1, output_file=str(kept))
    assert "earlier" not in kept.read_text()
    kept.write_text("somebody's notes")
    with pytest.raises(GenerationError, match="left as it is"):
        run(model_dir, prompt="a", output_file=str(kept))
    assert kept.read_text() == "somebody's notes"


def start(model_dir: Path, *words: str, **options: Any) -> subprocess.Popen[bytes]:
    return warm_python.Popen(
        [
            sys.executable,
            "-m",
            "tune.recipes.generate",
            f"model_checkpoint={model_dir}",
            "device=cpu",
            *words,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,  # a buffer on this side would hide output from communicate()
        **options,
    )


# A file of many prompts keeps the process busy for as long as a test needs it to be.
@pytest.fixture(scope="module")
def many_prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "prompts.txt"
    file.write_text("the cat sat\n" * 5000)
    return file


def test_ctrl_c_ends_cleanly(model_dir: Path, many_prompts: Path) -> None:
    process = start(model_dir, f"prompt_file={many_prompts}")
    assert process.stdout is not None
    header = process.stdout.readline()
    assert header.startswith(b"=== 1 of 5000")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert b"Interrupted" in err
    assert b"Traceback" not in err
    assert (header + out).endswith(b"\n")  # the shell's prompt gets a line of its own


def test_a_reader_that_leaves_is_no_error(model_dir: Path, many_prompts: Path) -> None:
    process = start(model_dir, f"prompt_file={many_prompts}", "log_level=ERROR")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=600) == 141


def test_a_terminal_without_utf8(model_dir: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = start(model_dir, "prompt=äöü", "temperature=1", "seed=1", "max_new_tokens=40", env=environment)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    out.decode("ascii")


def test_a_user_error_is_told_and_nothing_is_answered(
    model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"model_checkpoint={model_dir}", "device=cpu", "prompt=" + "cat " * 100]
    assert main(["run", "generate", *words]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("error: the prompt has")
    assert "Traceback" not in err
