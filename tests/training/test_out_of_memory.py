"""Memory that really runs out: the error says where, how much was taken, and what would need less."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tune.config.component import Component
from tune.errors import TrainingError
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.training import (
    LongestRow,
    PlannedRun,
    build_optimizer,
    explain_out_of_memory,
    plan_memory,
    plan_precision,
)

ROOT = Path(__file__).resolve().parents[2]
# A model of 84 MiB that is built, then trained. Each process has so much more address space than it began with:
# too little for the weights, for the activations, for the moments of the optimizer.
SCRIPT = """
import os, resource, sys
import torch
from tune.config.component import Component
from tune.errors import TrainingError
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.training import LongestRow, PlannedRun, build_optimizer, explain_out_of_memory, plan_memory, plan_precision

cpu = torch.device("cpu")
sizes = dict(vocab_size=3001, num_layers=6, num_heads=8, num_kv_heads=4, embed_dim=512, head_dim=64)
config = DecoderConfig(**sizes, intermediate_dim=1536, max_seq_len=600)
with torch.device("meta"):
    model = TransformerDecoder(config)
component = Component("torch.optim.AdamW", {"lr": 1e-3})
loss_fn = LinearCrossEntropyLoss()
precision = plan_precision("fp32", None, cpu)
# What training loads when it is first used is loaded now, so that the limit is about tensors.
weight = torch.nn.Parameter(torch.ones(3))
build_optimizer(component, [weight], in_backward=False)
planned = PlannedRun(model, loss_fn, precision, optimizer=component, batch_size=2)
plan = plan_memory(planned, LongestRow(300), cpu)
plan.explanation(0)

def setup():
    model.to_empty(device=cpu)
    model.reset_parameters()
    return build_optimizer(component, model.parameters(), in_backward=False)

def run():
    with explain_out_of_memory(lambda: plan):
        optimizer = setup()
        tokens = torch.randint(0, 3001, (2, 300))
        loss_sum(loss_fn, model, tokens, tokens).backward()
        optimizer.step()

mib = int(sys.argv[1])
space = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (space + mib * 2**20,) * 2)
try:
    run()
    print("it was enough", flush=True)
except TrainingError as error:
    print(error, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space")
def test_memory_that_runs_out_on_a_host_is_explained() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    environment.pop("TRITON_INTERPRET", None)  # it is for tests of kernels

    def end_with(mib: int) -> str:
        command = [sys.executable, "-c", SCRIPT, str(mib)]
        outcome = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert outcome.returncode == 0, outcome.stderr
        return outcome.stdout

    in_setup, in_forward, at_step = map(end_with, (100, 210, 350))
    assert "out of memory while the run is set up" in in_setup
    assert "out of memory in the forward pass (" in in_forward
    assert ".py, line " in in_forward
    assert "out of memory at the optimizer's step: can't allocate memory" in at_step
    for text in (in_setup, in_forward, at_step):
        assert "you tried to allocate" in text
        assert "In use by this process: 0." in text
        assert "\nweights, " in text
        assert "\ntogether " in text
        assert "a limit may be set (ulimit -v)" in text
        assert "\n  enable_activation_checkpointing=true: -" in text
    # By then enough was in use for what some settings would need.
    assert "which fits" in at_step


def test_without_a_plan_general_advice_is_given() -> None:
    general = r"In use by this process.*enable_activation_checkpointing"
    for get_plan in (None, lambda: None):
        with pytest.raises(TrainingError, match=general), explain_out_of_memory(get_plan):
            torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(TrainingError, match="out of memory: MemoryError"), explain_out_of_memory():
        raise MemoryError
    with pytest.raises(RuntimeError, match="shapes differ"), explain_out_of_memory():
        raise RuntimeError("shapes differ")


def test_a_recomputed_block_is_out_of_memory_in_backward() -> None:
    num_runs = 0

    def block(x: torch.Tensor) -> torch.Tensor:
        nonlocal num_runs
        num_runs += 1
        if num_runs == 2:
            torch.empty(2**60, dtype=torch.uint8)
        return x.exp()

    out = checkpoint(block, torch.ones(3, requires_grad=True), use_reentrant=False)
    with pytest.raises(TrainingError, match="out of memory in the backward pass"), explain_out_of_memory():
        out.sum().backward()


def test_the_loss_is_told_from_the_backward_pass() -> None:
    """Its gradients are formed in a function of autograd's, in the forward pass."""
    hidden = torch.ones(1, 2, 4, requires_grad=True)
    weight = torch.ones(1, 4).expand(2**50, 4)
    where = r"out of memory in the loss \(linear_cross_entropy.py, line \d+, forward\)"
    with pytest.raises(TrainingError, match=where), explain_out_of_memory():
        LinearCrossEntropyLoss()(hidden, weight, torch.tensor([[1, 2]]))


@pytest.mark.gpu
def test_memory_that_runs_out_on_a_gpu_is_explained() -> None:
    device = torch.device("cuda", 0)
    sizes = {"vocab_size": 3001, "num_layers": 6, "num_heads": 8, "num_kv_heads": 4, "embed_dim": 512}
    with torch.device("meta"):
        model = TransformerDecoder(
            DecoderConfig(**sizes, head_dim=64, intermediate_dim=1536, max_seq_len=600)
        )
    component, loss_fn = Component("torch.optim.AdamW", {"lr": 1e-3}), LinearCrossEntropyLoss()
    precision = plan_precision("fp32", None, device)
    planned = PlannedRun(model, loss_fn, precision, optimizer=component, batch_size=4)
    plan = plan_memory(planned, LongestRow(600), device)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    taken = torch.cuda.memory_reserved(device)
    torch.cuda.set_per_process_memory_fraction((taken + 0.5 * plan.peak) / total, device)

    def train() -> None:
        model.to_empty(device=device)
        model.reset_parameters()
        optimizer = build_optimizer(component, model.parameters(), in_backward=False)
        tokens = torch.randint(0, 3001, (4, 600), device=device)
        loss_sum(loss_fn, model, tokens, tokens).backward()
        optimizer.step()

    try:
        with pytest.raises(TrainingError) as caught, explain_out_of_memory(lambda: plan):
            train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    text = str(caught.value)
    assert text.startswith("out of memory in the forward pass (")
    assert "Tried to allocate" in text
    assert "In use on the GPU: " in text
    assert "\n  enable_activation_checkpointing=true: -" in text
