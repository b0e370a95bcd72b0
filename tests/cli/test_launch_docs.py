"""The launch files in docs/launch do what docs/launching.md says they do."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def stub(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(("code", "ends", "requeued"), [(0, 0, False), (138, 0, True), (1, 1, False)])
def test_the_slurm_script(tmp_path: Path, code: int, ends: int, requeued: bool) -> None:
    """Runs as it stands, among stand-ins for SLURM's commands; tune is the real one, and looks without running."""
    script = DOCS / "launch" / "slurm.sbatch"
    assert "\n#SBATCH --signal=USR1@120\n" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)
    stub(tmp_path, "srun", 'exec "$@"')
    stub(
        tmp_path, "scontrol", 'if [ "$1" = show ]; then echo node3; echo node4; else echo "$@" > requeued; fi'
    )
    stub(tmp_path, "tune", f'{sys.executable} -m tune "$@" --dry-run > plan || exit 99\nexit {code}')
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[3-4]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_ID": "77",
    }
    outcome = subprocess.run(["bash", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome.returncode == ends, outcome.stderr
    assert "processes: 16 (2 machines x 8), meeting at node3:29400 (c10d)" in (tmp_path / "plan").read_text()
    assert (tmp_path / "requeued").exists() == requeued


def test_the_kubernetes_manifest(tune) -> None:
    service, job = yaml.safe_load_all((DOCS / "launch" / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    program, *words = pod["containers"][0]["command"]
    assert program == "tune"
    outcome = tune(*words, "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "processes: 16 (2 machines x 8), meeting at tune-0.tune:29400 (c10d)" in outcome.out
    # pod 0 of the indexed job NAME is called NAME-0, below the service's name
    assert (job["metadata"]["name"], service["metadata"]["name"], pod["subdomain"]) == ("tune",) * 3
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 8


def test_the_commands_in_the_text(tune, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from tune.recipes.params.full_finetune import FullFinetuneParams\n"
        "def recipe_main(params: FullFinetuneParams): ...\n"
    )
    (tmp_path / "my.yaml").write_text("model_checkpoint: x\noutput_dir: out\ndataset: alpaca\nlr: 2e-5\n")
    commands = re.findall(r"^tune (.*?)(?:\s+#.*)?$", (DOCS / "launching.md").read_text(), re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        words = [word for word in shlex.split(command) if word not in ("...", "--dry-run")]
        words = ["2" if word == "gpu" else word for word in words]  # there may be none here
        outcome = tune(*words, "device=cpu", "--dry-run")
        assert outcome.code == 0, (command, outcome.err)
        assert "# plan" in outcome.out
