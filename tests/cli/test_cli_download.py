"""`tune download` as it is typed: names, folders, patterns, what it prints, and how it fails."""

from __future__ import annotations

import os
import pty
import shlex
import signal
import stat
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from hub_server import HubServer

from tune.cli.arguments import read_arguments
from tune.cli.catalogue import find_config
from tune.cli.main import load_command
from tune.hub.short_names import SHORT_NAMES, repository_of

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes" / "bundled" / "tiny_llama"
TINY_FILES = {path.name: path.read_bytes() for path in TINY.iterdir()}
BIG = os.urandom(1 << 20) * 8


def start(hub: HubServer, cwd: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, **variables}
    return subprocess.Popen(
        [sys.executable, "-m", "tune", "download", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_part(folder: Path, num_bytes: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not any(part.stat().st_size >= num_bytes for part in folder.rglob("*.part")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing arrived"
        time.sleep(0.02)


def test_a_short_name_lands_where_the_configs_look(tune, hub: HubServer, tmp_path: Path) -> None:
    hub.add(
        "meta-llama/Llama-2-7b-hf", {**TINY_FILES, "pytorch_model.bin": BIG[:5000], "LICENSE.txt": b"terms"}
    )
    outcome = tune("download", "llama2")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "checkpoints" / "Llama-2-7b-hf"
    assert f"model_checkpoint: {folder.relative_to(tmp_path)}\n" in find_config("llama2/7B_full").read_text()
    assert {p.name for p in folder.iterdir()} == {*TINY_FILES, "LICENSE.txt", ".tune_download"}
    for name in (*TINY_FILES, "LICENSE.txt"):
        assert f"  {name} " in outcome.out
    assert f"{len(TINY_FILES) + 1} files, 2.8 MB, all verified" in outcome.out
    assert "left on the hub: pytorch_model.bin (5.0 kB)" in outcome.out
    assert "tune run full_finetune --config llama2/7B_full" in outcome.out


def test_what_it_says_to_type_next_works(tune, hub: HubServer, tmp_path: Path) -> None:
    hub.add("ann/tiny", TINY_FILES)
    outcome = tune("download", "ann/tiny", "--output-dir", "my models/tiny")
    steps = [shlex.split(line)[1:] for line in outcome.out.splitlines() if line.startswith("  tune ")]
    assert [step[1] for step in steps] == ["full_finetune", "generate"]
    assert tune(*steps[0], "--dry-run").code == 0
    outcome = tune(*steps[1], "max_new_tokens=3", "device=cpu")
    assert outcome.code == 0, outcome.err


def test_again_says_that_nothing_is_new(tune, hub: HubServer) -> None:
    hub.add("ann/tiny", TINY_FILES)
    first = tune("download", "ann/tiny", "--output-dir", "x")
    assert ", was there" not in first.err
    again = tune("download", "ann/tiny", "--output-dir", "x")
    assert again.code == 0
    assert "nothing new, all verified" in again.out
    assert again.err.count(", was there)") == len(TINY_FILES)


@pytest.mark.parametrize("page", ["{}/ann/tiny", "{}/ann/tiny/tree/main"])
def test_the_address_of_a_page(tune, hub: HubServer, tmp_path: Path, page: str) -> None:
    hub.add("ann/tiny", TINY_FILES)
    assert tune("download", page.format(hub.url)).code == 0
    assert (tmp_path / "checkpoints" / "tiny" / "config.json").is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["ann/m", "--ignore-patterns", "*.safetensors", "*.txt"],
        ["--ignore-patterns", "*.safetensors", "--ignore-patterns=*.txt", "ann/m"],
        ["ann/m", "--ignore-patterns", "*.safetensors", "notes.txt", "--output-dir", "checkpoints/m"],
    ],
)
def test_patterns(tune, hub: HubServer, tmp_path: Path, words: list[str]) -> None:
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "notes.txt"]
    hub.add("ann/m", {name: name.encode() for name in names})
    assert tune("download", *words).code == 0
    found = {p.name for p in (tmp_path / "checkpoints" / "m").iterdir()}
    assert found == {"config.json", "pytorch_model.bin", ".tune_download"}


def test_metas_files_are_used_from_their_folder(tune, hub: HubServer) -> None:
    hub.add("meta-llama/Meta-Llama-3-8B", {"config.json": b"{}", "original/consolidated.00.pth": b"1",
                                           "model.safetensors": b"2"})  # fmt: skip
    outcome = tune("download", "llama3", "--ignore-patterns", "*.safetensors")
    assert "model_checkpoint=checkpoints/Meta-Llama-3-8B/original" in outcome.out


def test_historic_flags(tune, hub: HubServer) -> None:
    hub.users["hf_x"] = ("ann", "read")
    hub.add("ann/tiny", TINY_FILES)
    words = ("ann/tiny", "--output-dir", "x", "--hf-token", "hf_x", "--ignore-patterns", "*.h5")
    assert tune("download", *words, "--source", "huggingface").code == 0
    outcome = tune("download", *words, "--source", "kaggle")
    assert outcome.code == 2
    assert "Hugging Face hub only" in outcome.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "0 arguments given; usage: tune download MODEL"),
        (["a/b", "c/d"], "2 arguments given; usage: tune download MODEL"),
        (["lama2"], "did you mean llama2 (meta-llama/Llama-2-7b-hf)"),
        (["../x"], "names no model"),
        (["a/b\0"], "MODEL is empty"),
        (["\udcff"], "names no model"),
        (["a/b", "--output-dir", ""], "--output-dir is empty"),
        (["a/b", "--convert", "--no-convert"], "exclude each other"),
        (["a/b", "--revision", ""], "--revision is empty"),
        (["a/b", "--output-dirr", "x"], "did you mean --output-dir?"),
        (["a/b", "--revision"], "--revision needs a value"),
    ],
)
def test_usage(tune, hub: HubServer, words: list[str], expected: str) -> None:
    outcome = tune("download", *words)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert expected in outcome.err
    assert hub.requests == []


def test_two_tokens_are_not_repeated(tune, hub: HubServer) -> None:
    for command in (["download", "a/b"], ["upload", "x", "a/b"]):
        outcome = tune(*command, "--hf-token", "hf_one", "--hf-token", "hf_two")
        assert outcome.code == 2
        assert "--hf-token is given 2 times; give it once" in outcome.err
        assert "hf_one" not in outcome.err


def test_help_lists_every_short_name(tune) -> None:
    text = " ".join(tune("download", "--help").out.split())
    for family, names in SHORT_NAMES.items():
        assert f"{family} {', '.join(names)}" in text


def test_completion(tune) -> None:
    out = tune("completion", "--words", "--", "download", "llama3.2-1").out
    assert out.split() == ["llama3.2-1b", "llama3.2-1b-instruct"]
    assert "--output-dir" in tune("completion", "--words", "--", "download", "x/y", "--").out
    assert tune("completion", "--words", "--", "upload", "").out == ""


def test_convert_has_nothing_to_do_for_safetensors(tune, hub: HubServer) -> None:
    hub.add("ann/tiny", TINY_FILES)
    outcome = tune("download", "ann/tiny", "--convert")
    assert outcome.code == 0
    assert "Nothing to convert" in outcome.out


def test_offline_is_said(hub: HubServer, tmp_path: Path) -> None:
    process = start(hub, tmp_path, "a/b", HF_HUB_OFFLINE="1")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert err.startswith("error: the hub is switched off by HF_HUB_OFFLINE")
    assert "Traceback" not in err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_download_goes_on_where_it_was(hub: HubServer, tmp_path: Path, how: signal.Signals) -> None:
    hub.add("a/b", {"config.json": b"{}", "model.safetensors": BIG})
    held = hub.fail("/blob/", "hold", times=99, after=len(BIG) // 2)
    process = start(hub, tmp_path, "a/b", HF_HUB_DOWNLOAD_TIMEOUT="600")
    wait_for_part(tmp_path, len(BIG) // 4, process)
    process.send_signal(how)
    _, err = process.communicate(timeout=300)  # the rest, which never comes, is not waited for
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "What has arrived is kept; the same command goes on from there." in err
        assert "Traceback" not in err
    model = tmp_path / "checkpoints" / "b" / "model.safetensors"
    assert not model.exists()
    held.times = 0
    held.release.set()
    hub.storage_requests.clear()
    process = start(hub, tmp_path, "a/b")
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert model.read_bytes() == BIG
    (asked,) = [headers["range"] for _, _, headers in hub.storage_requests]
    assert int(asked.removeprefix("bytes=").removesuffix("-")) >= len(BIG) // 4


def test_two_downloads_into_one_folder(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", {"config.json": b"{}", "model.safetensors": BIG})
    held = hub.fail("/blob/", "hold", after=len(BIG) // 2)
    first = start(hub, tmp_path, "a/b", HF_HUB_DOWNLOAD_TIMEOUT="600")
    wait_for_part(tmp_path, 1000, first)
    second = start(hub, tmp_path, "a/b")
    assert second.stderr is not None
    while "Another download writes to" not in (line := second.stderr.readline()):
        assert line, "the second ended without waiting for the first"
    held.release.set()
    results = [process.communicate(timeout=300) for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), results
    assert (tmp_path / "checkpoints" / "b" / "model.safetensors").read_bytes() == BIG
    assert hub.count("GET", "/blob/") == 1, "the second waits for the first, then has nothing to do"
    assert "model.safetensors (8.4 MB, was there)" in results[1][1]


def test_a_token_shows_nowhere(hub: HubServer, tmp_path: Path) -> None:
    hub.users["hf_secret123"] = ("ann", "read")
    hub.add("a/b", {"config.json": b"{}", "model.safetensors": BIG}, gated=True)
    hub.add("ann/ok", TINY_FILES)
    for words in (["a/b"], ["ann/ok"], ["a/none"], ["ann/ok", "--revision", "no"]):
        process = start(hub, tmp_path, *words, HF_TOKEN="hf_secret123", HF_DEBUG="1")
        out, err = process.communicate(timeout=300)
        assert "hf_secret123" not in out + err
        assert "Traceback" not in err
    written = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert not any(b"hf_secret123" in p.read_bytes() for p in written)
    assert not any(p.stat().st_mode & stat.S_IXUSR for p in written), "nothing that is fetched can be run"


def test_a_file_too_large_for_the_disk(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", {"config.json": b"{}", "model.safetensors": BIG})
    command = f"ulimit -f 1000; exec {sys.executable} -m tune download a/b"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url}
    outcome = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert outcome.returncode == 1
    assert "model.safetensors (8,388,608 bytes) cannot be written: File too large" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_bar_on_a_terminal(hub: HubServer, tmp_path: Path) -> None:
    hub.add("ann/tiny", TINY_FILES)
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tune", "download", "ann/tiny"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=terminal, text=True,
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(controller, 65536):
            shown += piece
    except OSError:  # how a terminal says that nobody writes any more
        pass
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert b"%|" in shown
    assert b"[1/" not in shown
    assert "all verified" in out


@pytest.mark.parametrize("layout", ["meta", "meta_original", "pickle"])
def test_convert_makes_safetensors_beside_the_download(
    tune, hub: HubServer, tmp_path: Path, layout: str
) -> None:
    import torch
    from safetensors.torch import load_file

    tensors = load_file(TINY / "model.safetensors")
    if layout == "pickle":
        torch.save(tensors, tmp_path / "pytorch_model.bin")
        rest = {name: data for name, data in TINY_FILES.items() if name != "model.safetensors"}
        files = {**rest, "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()}
    else:
        assert tune("convert-ckpt", str(TINY), "as_meta", "--to", "meta").code == 0
        prefix = "original/" if layout == "meta_original" else ""
        files = {prefix + path.name: path.read_bytes() for path in (tmp_path / "as_meta").iterdir()}
    hub.add("ann/tiny", files)
    outcome = tune("download", "ann/tiny", "--convert")
    assert outcome.code == 0, outcome.err
    converted = tmp_path / "checkpoints" / "tiny-safetensors"
    found = load_file(converted / "model.safetensors")
    assert found.keys() >= tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert "model_checkpoint=checkpoints/tiny-safetensors" in outcome.out
    again = tune("download", "ann/tiny", "--convert")
    assert again.code == 1, "what is there is not overwritten"
    assert "tiny-safetensors" in again.err


def test_the_commands_of_the_docs_can_be_read() -> None:
    blocks = (ROOT / "docs" / "models.md").read_text().split("```\n")[1::2]
    lines = [line for block in blocks for line in block.splitlines() if line.startswith("tune ")]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line, comments=True)
        given = read_arguments(load_command(words[1]), words[2:])
        if words[1] == "download":
            repository_of(given.operands[0])
