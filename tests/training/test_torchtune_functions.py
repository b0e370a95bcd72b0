"""torchtune's functions for training loops: its arguments, and what they do to numbers."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from tune import modules, training, utils
from tune.config import resolve
from tune.errors import TrainingError
from tune.models.llama2 import llama2
from tune.recipes.params.full_finetune import FullFinetuneParams


def tiny() -> modules.TransformerDecoder:
    torch.manual_seed(0)
    return llama2(
        vocab_size=29,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        embed_dim=24,
        intermediate_dim=40,
        max_seq_len=19,
    )


def test_the_default_type_holds_inside_only() -> None:
    with training.set_default_dtype(torch.bfloat16):
        assert torch.ones(2).dtype == torch.bfloat16
    assert torch.ones(2).dtype == torch.float32
    with pytest.raises(KeyError), training.set_default_dtype(torch.float64):
        raise KeyError
    assert torch.ones(2).dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (None, torch.float32),
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp16", torch.float16),
        ("fp64", torch.float64),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_types_have_their_names(name, dtype: torch.dtype) -> None:
    assert training.get_dtype(name, torch.device("cpu")) == dtype
    assert training.get_dtype(dtype=name) == dtype


@pytest.mark.parametrize("name", ["int8", torch.int8])
def test_no_other_types_are_trained_in(name) -> None:
    with pytest.raises(TrainingError):
        training.get_dtype(name)


def test_a_seed_seeds_everything() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert training.set_seed(seed=3) == 3
    first = draws()
    assert training.set_seed(3) == 3
    assert draws() == first
    torch.manual_seed(3)
    assert float(torch.rand(())) == first[2]
    drawn = training.set_seed()
    first = draws()
    training.set_seed(drawn)
    assert draws() == first
    for seed in (-1, 2**32):
        with pytest.raises(ValueError, match=str(seed)):
            training.set_seed(seed)


def test_a_seed_may_ask_for_determinism(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        training.set_seed(3, debug_mode="warn")
        assert torch.get_deterministic_debug_mode() == 1
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        training.set_seed(3, debug_mode=0)
        assert torch.get_deterministic_debug_mode() == 0
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (False, True)
    finally:
        torch.set_deterministic_debug_mode(0)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before


def test_processes_join_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK"):
        monkeypatch.delenv(name, raising=False)
    assert not training.is_distributed()
    assert training.init_distributed(backend="gloo") is False
    assert training.get_world_size_and_rank() == utils.get_world_size_and_rank() == (1, 0)
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert training.is_distributed()
    try:
        assert training.init_distributed(
            backend="gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
        )
        assert training.get_world_size_and_rank() == (1, 0)
        with pytest.raises(RuntimeError, match="already"):
            training.init_distributed(backend="gloo")
    finally:
        dist.destroy_process_group()


def test_cleaning_up_needs_no_gpu() -> None:
    training.cleanup_before_training()


@pytest.mark.parametrize("kind", ["types", "function"])
def test_chosen_blocks_run_again_backwards(kind: str) -> None:
    tokens = torch.randint(0, 29, (2, 7))
    plain, again = tiny(), tiny()
    plain(tokens).square().sum().backward()
    calls = []
    for layer in again.layers:
        layer.attn.register_forward_hook(lambda module, inputs, output: calls.append(module))

    def choose(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        return isinstance(module, modules.TransformerSelfAttentionLayer) and nonwrapped_numel > 1

    policy = {modules.TransformerSelfAttentionLayer} if kind == "types" else choose
    training.set_activation_checkpointing(again, auto_wrap_policy=policy)
    again(tokens).square().sum().backward()
    assert len(calls) == 2 * len(again.layers)
    for (name, one), (other_name, other) in zip(
        plain.named_parameters(), again.named_parameters(), strict=True
    ):
        assert name == other_name
        assert torch.equal(one.grad, other.grad)


def test_blocks_are_compiled_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    training.compile_model(model, verbose=False)
    compiled = [path for path, module in model.named_modules() if "forward" in vars(module)]
    assert compiled == ["layers.0", "layers.1"]
    loss = nn.CrossEntropyLoss()
    assert training.compile_loss(loss, verbose=False) is loss
    assert loss._compiled_call_impl is not None


def test_gradients_are_scaled_where_there_are_some() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 3))
    model[0](torch.ones(4, 2)).sum().backward()
    before = model[0].weight.grad.clone()
    training.scale_grads(model, torch.tensor(0.25))
    assert torch.equal(model[0].weight.grad, before / 4)
    assert model[1].weight.grad is None


def test_offloading_changes_nothing_unless_enabled() -> None:
    model = nn.Linear(2, 3)
    with training.get_act_offloading_ctx_manager(model, enable_activation_offloading=False):
        model(torch.ones(2)).sum().backward()
    with pytest.raises(TrainingError, match="cpu"):
        training.get_act_offloading_ctx_manager(model, True)


def test_batches_move_in_place() -> None:
    batch = {"tokens": torch.ones(2), "more": {"labels": torch.ones(3)}}
    assert utils.batch_to_device(batch, torch.device("meta")) is None
    assert batch["tokens"].is_meta
    assert batch["more"]["labels"].is_meta
    with pytest.raises(ValueError, match="'rows' is a list"):
        utils.batch_to_device({"rows": [1]}, torch.device("cpu"))


@pytest.mark.parametrize("module", ["training", "utils"])
def test_configs_may_name_torchtunes_own_checkpointer(module: str) -> None:
    name = f"torchtune.{module}.FullModelTorchTuneCheckpointer"
    text = (
        "model: llama2_7b\ntokenizer: auto\ndataset: alpaca\noutput_dir: out\n"
        "optimizer: {_component_: AdamW, lr: 1e-5}\n"
        f"checkpointer: {{_component_: {name}, checkpoint_dir: ck, checkpoint_files: [torchtune_model_0.pt]}}\n"
    )
    resolution = resolve(FullFinetuneParams, text=text)
    assert [error.message for error in resolution.errors] == []
    assert resolution.params.checkpointer.path == "tune.training.FullModelTorchTuneCheckpointer"
    assert issubclass(training.FullModelTorchTuneCheckpointer, training.FullModelCheckpointer)
