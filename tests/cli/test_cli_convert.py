"""`tune convert-ckpt` says what it does, what it has verified and what to type next; and what is wrong."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tune.models
from tests import warm_python
from tune.checkpoints import open_weights, save_model
from tune.models.llama2 import llama2


@pytest.fixture
def hf(tmp_path: Path, spm_file: Path) -> Path:
    folder = tmp_path / "base model"
    save_model(llama2(600, 2, 4, 24, 33, num_kv_heads=2, intermediate_dim=20), folder)
    shutil.copy(spm_file, folder / "tokenizer.model")
    return folder


def test_a_conversion_from_start_to_text(tune, hf: Path) -> None:
    outcome = tune("convert-ckpt", str(hf), "there", "--to", "meta", "--dtype", "bf16")
    assert outcome.code == 0
    num_tensors = len(open_weights(hf))
    assert f"{num_tensors} tensors read back equal to the source's in bfloat16" in outcome.out
    assert "Hugging Face -> Meta, bfloat16" in outcome.out
    assert "tokenizer.model" in outcome.out
    assert "tune run generate there" in outcome.out
    assert outcome.err.splitlines()[0].startswith("Writing: ")
    assert outcome.err.splitlines()[1].startswith("Reading again: ")
    outcome = tune("convert-ckpt", "there", "and back")
    assert outcome.code == 0
    assert f"{num_tensors} tensors read back equal to the source's, bit for bit" in outcome.out
    assert "tune run generate 'and back'" in outcome.out
    # The command it names works.
    words = [
        "model_checkpoint=and back",
        "prompt=the apple",
        "max_new_tokens=3",
        "device=cpu",
        "temperature=0",
    ]
    assert tune("run", "generate", *words).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "0 arguments given; usage: tune convert-ckpt SRC DEST"),
        (["one"], "1 argument given"),
        (["one", "two", "three"], "3 arguments given"),
        (["one", ""], "DEST is empty"),
        (["one", "a\0b"], "DEST is empty"),
        (["one", "two", "--to", "gguf"], "--to gguf: there is only hf, meta, tune"),
        (["one", "two", "--to", "hf", "--to", "meta"], "--to is given 2 times"),
        (["one", "two", "--dtype", "int4"], "--dtype int4: there is only bf16, fp32, fp16"),
        (["one", "two", "--dtype"], "--dtype needs a value"),
        (["one", "two", "--quantize"], "has no option --quantize"),
    ],
)
def test_a_wrong_command_line_is_explained(tune, words: list[str], said: str) -> None:
    outcome = tune("convert-ckpt", *words)
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert said in outcome.err


def test_what_fails_is_one_block(tune, hf: Path) -> None:
    for words, said in (
        (["nowhere", "out"], "there is no folder nowhere"),
        ([str(hf), str(hf)], "is the source itself"),
        ([str(hf), str(hf.parent)], "lie in one another"),
    ):
        outcome = tune("convert-ckpt", *words)
        assert (outcome.code, outcome.out) == (1, "")
        assert outcome.err.startswith("error: ")
        assert outcome.err.count("error: ") == 1
        assert said in outcome.err
    Path("full").mkdir()
    Path("full/mine.txt").touch()
    outcome = tune("convert-ckpt", str(hf), "full")
    assert outcome.code == 1
    assert "full holds mine.txt already" in outcome.err
    assert "--force" in outcome.err
    assert tune("convert-ckpt", str(hf), "full", "--force").code == 0
    assert Path("full/mine.txt").exists()


def test_the_shell_completes_it(tune) -> None:
    assert tune("completion", "--words", "--", "conv").out == "convert-ckpt\n"
    assert tune("completion", "--words", "--", "convert-ckpt", "a", "--to", "").out == "hf\nmeta\ntune\n"
    assert "--dtype\n" in tune("completion", "--words", "--", "convert-ckpt", "--d").out
    assert tune("completion", "--words", "--", "convert-ckpt", "").out == ""  # the shell's own files


def test_control_c_stops_it_and_leaves_nothing(tmp_path: Path) -> None:
    # Large enough to be caught on the way.
    with torch.device("meta"):
        model = llama2(4096, 2, 4, 1024, 33, intermediate_dim=2816).to(torch.bfloat16)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    save_model(model, tmp_path / "in")
    command = [
        sys.executable,
        "-m",
        "tune",
        "convert-ckpt",
        str(tmp_path / "in"),
        str(tmp_path / "out"),
        "--to",
        "meta",
    ]
    primary, replica = pty.openpty()  # as a person sees it: with a bar
    process = warm_python.Popen(command, stdout=subprocess.PIPE, stderr=replica)
    os.close(replica)
    deadline = time.monotonic() + 600
    while not (tmp_path / "out" / ".converting").is_dir() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=600)
    shown = b""
    try:
        while chunk := os.read(primary, 65536):
            shown += chunk
    except OSError:  # the terminal has gone
        pass
    os.close(primary)
    assert process.returncode == 130, shown.decode()
    assert out == b""
    assert f"Stopped. No half-written model is left in {tmp_path / 'out'}." in shown.decode().replace(
        "\r\n", "\n"
    )
    assert "Traceback" not in shown.decode()
    assert not (tmp_path / "out").exists()
    assert tune.models.from_checkpoint(tmp_path / "in").config.num_layers == 2
