"""Whether a run would repeat: what is said, and what is so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tune.config.component import Component
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.config import MoEConfig
from tune.training import describe_repeatability
from tune.training.determinism import nondeterminism
from tune.utils.mesh import Mesh

ROOT = Path(__file__).resolve().parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


ADAMW = Component("torch.optim.AdamW", {})


def make_model(moe: MoEConfig | None = None) -> TransformerDecoder:
    with torch.device("meta"):
        sizes = {"vocab_size": 31, "num_layers": 2, "num_heads": 3, "num_kv_heads": 1, "embed_dim": 12}
        return TransformerDecoder(
            DecoderConfig(**sizes, head_dim=4, intermediate_dim=20, max_seq_len=16, moe=moe)
        )


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_seeded_run_on_a_cpu_repeats(threads) -> None:
    threads(2)
    assert nondeterminism(3, ADAMW, CPU, make_model()) == []
    line = describe_repeatability(3, ADAMW, make_model(), Mesh())
    assert line == (
        "Repeatable: the same seed, machine and 2 threads (OMP_NUM_THREADS) give the same weights, bit for bit"
    )
    threads(1)
    assert "machine, 4 processes and 1 thread (" in describe_repeatability(
        3, ADAMW, make_model(), Mesh(world_size=4)
    )


def test_each_cause_is_named(threads, monkeypatch: pytest.MonkeyPatch) -> None:
    threads(2)
    experts = make_model(MoEConfig(3, 2, 8))
    (unseeded,) = nondeterminism(None, ADAMW, CPU, make_model())
    assert "seed is null" in unseeded
    (of_experts,) = nondeterminism(3, ADAMW, CPU, experts)
    assert "2 threads" in of_experts
    threads(1)
    assert nondeterminism(3, ADAMW, CPU, experts) == []
    eight_bit = Component("bitsandbytes.optim.AdamW8bit", {})
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert [words.split()[0] for words in nondeterminism(3, eight_bit, CUDA, experts)] == [
        "torch's",
        "bitsandbytes",
    ]
    line = describe_repeatability(None, ADAMW, make_model(), Mesh(CUDA))
    assert line.startswith("Would not repeat bit for bit: seed is null")
    assert line.count(";") == 1


STRICT = """
import os, torch
from torch import nn
from tune.training.determinism import make_deterministic, nondeterminism
from tests_params import ADAMW, make_model, MoEConfig
cuda = torch.device("cuda", 0)
make_deterministic()
assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
assert nondeterminism(3, ADAMW, cuda, make_model()) == []
torch.set_num_threads(2)
assert nondeterminism(3, ADAMW, torch.device("cpu"), make_model(MoEConfig(3, 2, 8))) == []
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":0:0"
assert "cuBLAS" in nondeterminism(3, ADAMW, cuda, make_model())[0]

# What the experts' gradients do with two threads, repeats.
source, rows = torch.randn(2048, 33, requires_grad=True), torch.randint(0, 512, (20480,))
out = torch.randn(20480, 33)
first, *others = (torch.autograd.grad(source[rows], source, out)[0] for _ in range(5))
assert all(torch.equal(first, other) for other in others)
print("strict")
"""


def test_made_deterministic_nothing_is_left(tmp_path: Path) -> None:
    """In a process of its own: the setting is the whole process's, and meant to last."""
    (tmp_path / "tests_params.py").write_text(Path(__file__).read_text())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(tmp_path)))}
    environment.pop("CUBLAS_WORKSPACE_CONFIG", None)
    outcome = subprocess.run(
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
