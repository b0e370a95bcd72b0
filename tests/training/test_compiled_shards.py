"""Compiled blocks within FSDP, on one process: no breaks, as few graphs as without, and the same gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh

from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.training import checkpoint_activations, compile_blocks, shard_model
from tune.utils.mesh import Mesh
from tune.utils.sharding import full_tensor


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    torch._dynamo.reset()
    counters.clear()
    yield Mesh(device_mesh=init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard")))
    dist.destroy_process_group()
    torch._dynamo.reset()


def gradients(model: TransformerDecoder) -> list[Tensor]:
    for length in (9, 14):
        model.zero_grad()
        tokens = torch.arange(2 * length).view(2, length)
        loss = loss_sum(LinearCrossEntropyLoss(), model, tokens, tokens)
        loss.backward()
    return [full_tensor(weight.grad) for weight in model.parameters() if weight.grad is not None]


def test_sharded_blocks_are_compiled_whole(mesh: Mesh) -> None:
    torch.manual_seed(4)
    plain = TransformerDecoder(DecoderConfig(61, 2, 6, 2, 48, 8, 50, 64))
    with torch.device("meta"):
        model = TransformerDecoder(plain.config)
    checkpoint_activations(model.layers[:1])
    compile_blocks(model.layers, backend="eager")
    shard_model(model, mesh)
    with torch.no_grad():
        for weight, given in zip(model.parameters(), plain.parameters(), strict=True):
            weight.to_local().copy_(given)
    for expected, actual in zip(gradients(plain), gradients(model), strict=True):
        torch.testing.assert_close(expected, actual, rtol=1e-5, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == 2  # a block that is recomputed, and one that is not
    assert not counters["graph_break"]
