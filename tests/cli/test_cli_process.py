"""The real command in a process of its own: what it imports, what it leaves behind, how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, cwd: Path = ROOT, **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "tune", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        **options,
    )


COMMANDS = [
    [],
    ["--help"],
    ["--version"],
    ["ls"],
    ["cat", "llama2/7B_full"],
    ["cp", "llama2/7B_full", "my.yaml"],
    ["validate", "llama2/7B_full"],
    ["validate", "alpaca_llama2_finetune"],
    ["describe", "full_finetune", "optimizer"],
    ["schema", "full_finetune"],
    ["run", "full_finetune", "--help"],
    ["run", "full_finetune", "--config", "llama2/7B_full", "--dry-run"],
    ["run", "full_finetune", "--config", "llama2/7B_full", "batch_size=no"],
    ["completion", "bash"],
    ["download", "--help"],
    ["upload", "--help"],
]


def test_no_command_imports_torch(tmp_path: Path) -> None:
    heavy = ["torch", "numpy", "datasets", "transformers", "sentencepiece", "huggingface_hub"]
    code = (
        "import sys, io, contextlib\n"
        "from tune.cli.main import main\n"
        f"for words in {COMMANDS!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "        code = main(words)\n"
        "    assert code == (2 if words[-1:] == ['batch_size=no'] else 0), (words, code)\n"
        f"    found = [name for name in {heavy!r} if name in sys.modules]\n"
        "    assert not found, (words, found)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)


def test_it_works_from_any_folder(tmp_path: Path) -> None:
    outcome = run("validate", "llama2/7B_full", cwd=tmp_path)
    assert outcome.returncode == 0
    assert outcome.stderr.startswith("Not looked at: files, folders,")
    assert outcome.stdout == "llama2/7B_full: valid for full_finetune\n"


@pytest.mark.parametrize("name", ["torch", "yaml", "dacite", "dataclasses", "recipes"])
def test_files_in_the_working_directory_are_not_imported(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.py").write_text("open('imported', 'w').close()\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    boot = f"import sys; sys.path[0:1] = [{str(ROOT)!r}]"
    code = (
        f"{boot}\nimport runpy\nimport tune\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "sys.argv = ['tune', 'validate', 'llama2/7B_full']\nrunpy.run_module('tune', run_name='__main__')\n"
    )
    outcome = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stderr
    assert not (tmp_path / "imported").exists()


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m tune cat full_finetune | head -n 1; exit ${{PIPESTATUS[0]}}"
    outcome = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert outcome.stderr == ""
    assert outcome.returncode in (0, 141)  # whether head left first is chance
    script = "import sys\nfrom tune.cli.main import main\nsys.exit(main(['cat', 'full_finetune'] ))"
    reader, writer = os.pipe()
    os.close(reader)
    outcome = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True
    )
    os.close(writer)
    assert outcome.returncode == 141
    assert outcome.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named() -> None:
    with open("/dev/full", "w") as full:
        outcome = subprocess.run(
            [sys.executable, "-m", "tune", "ls"], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert outcome.returncode != 0
    assert "No space left" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_vanished_working_directory_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"cd {gone} && rmdir {gone} && {sys.executable} -m tune ls"
    outcome = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert outcome.returncode == 2
    assert "working directory" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_terminal_that_knows_ascii_only(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("prompt: äöü 漢\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    outcome = subprocess.run(
        [sys.executable, "-m", "tune", "cat", "my.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0
    assert outcome.stdout == "prompt: \\xe4\\xf6\\xfc \\u6f22\n"


def test_ctrl_c_ends_a_run_with_130(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(900)\n"
    )
    outcome = run("run", "slow.py", cwd=tmp_path, timeout=300)
    assert outcome.returncode == 130
    assert "Traceback" not in outcome.stderr


def test_no_colour_unless_a_terminal_looks_on() -> None:
    for words in (
        [],
        ["ls"],
        ["run", "--help"],
        ["describe", "full_finetune", "lr"],
        ["validate", "nothing"],
    ):
        outcome = run(*words)
        assert "\x1b" not in outcome.stdout + outcome.stderr
