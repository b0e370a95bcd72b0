"""Whether a run would repeat: what is said, and what is so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import warm_python
from tune.config.component import Component
from tune.modules import MixtureOfExperts, MoEConfig
from tune.training import describe_repeatability
from tune.training.determinism import nondeterminism
from tune.utils.mesh import Mesh

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


ADAMW = Component("torch.optim.AdamW", {})


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_seeded_run_on_a_cpu_repeats(threads) -> None:
    threads(2)
    assert nondeterminism(3, ADAMW, CPU) == []
    line = describe_repeatability(3, ADAMW, Mesh())
    assert line == (
        "Repeatable: the same seed, machine and 2 threads (OMP_NUM_THREADS) give the same weights, bit for bit"
    )
    threads(1)
    assert "machine, 4 processes and 1 thread (" in describe_repeatability(3, ADAMW, Mesh(world_size=4))


def test_each_cause_is_named(threads, monkeypatch: pytest.MonkeyPatch) -> None:
    threads(2)
    (unseeded,) = nondeterminism(None, ADAMW, CPU)
    assert "seed is null" in unseeded
    eight_bit = Component("bitsandbytes.optim.AdamW8bit", {})
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert [words.split()[0] for words in nondeterminism(3, eight_bit, CUDA)] == [
        "torch's",
        "bitsandbytes",
    ]
    line = describe_repeatability(None, ADAMW, Mesh(CUDA))
    assert line.startswith("Would not repeat bit for bit: seed is null")
    assert line.count(";") == 1


STRICT = """
import os, torch
from torch import nn
from tune.training.determinism import make_deterministic, nondeterminism
from tests_params import ADAMW
cuda = torch.device("cuda", 0)
make_deterministic()
assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
assert nondeterminism(3, ADAMW, cuda) == []
torch.set_num_threads(2)
assert nondeterminism(3, ADAMW, torch.device("cpu")) == []
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":0:0"
assert "cuBLAS" in nondeterminism(3, ADAMW, cuda)[0]

# What indexing's own gradient does with two threads, repeats.
source, rows = torch.randn(2048, 33, requires_grad=True), torch.randint(0, 512, (20480,))
out = torch.randn(20480, 33)
first, *others = (torch.autograd.grad(source[rows], source, out)[0] for _ in range(5))
assert all(torch.equal(first, other) for other in others)
print("strict")
"""


def test_experts_add_up_in_one_order(threads) -> None:
    threads(2)
    torch.manual_seed(0)
    module, x = MixtureOfExperts(33, MoEConfig(7, 3, 40)), torch.randn(4096, 33, requires_grad=True)
    inputs = [x, *module.parameters()]
    first, *others = (torch.autograd.grad(module(x).square().sum(), inputs) for _ in range(4))
    assert all(torch.equal(*pair) for other in others for pair in zip(first, other, strict=True))


def test_made_deterministic_nothing_is_left(tmp_path: Path) -> None:
    """In a process of its own: the setting is the whole process's, and meant to last."""
    (tmp_path / "tests_params.py").write_text(Path(__file__).read_text())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
    environment.pop("CUBLAS_WORKSPACE_CONFIG", None)
    outcome = warm_python.run(
        [sys.executable, "-c", STRICT], env=environment, capture_output=True, text=True, timeout=120
    )
    assert outcome.stdout == "strict\n", outcome.stderr


@pytest.mark.gpu
def test_on_a_gpu_a_deterministic_run_repeats() -> None:
    script = """
import torch
from tune.training import make_deterministic
make_deterministic()
from torch.nn import functional as F
q, k, v, g = (torch.randn(2, 8, 777, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(4))
mask = torch.ones(777, 777, dtype=torch.bool, device="cuda").tril()
for kwargs in ({"is_causal": True}, {"attn_mask": mask}):
    grads = [torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, **kwargs), (q, k, v), g) for _ in range(5)]
    assert all(torch.equal(a, b) for other in grads[1:] for a, b in zip(grads[0], other))
print("the same")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    outcome = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300
    )
    assert outcome.stdout == "the same\n", outcome.stderr
