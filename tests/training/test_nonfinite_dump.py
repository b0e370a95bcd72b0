"""A step with bad numbers is kept: examples, batches, and where the numbers went bad, from a real model."""

from __future__ import annotations

import json
import resource
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tune.data import ResumableSampler, shift_labels
from tune.modules import DecoderConfig, TransformerDecoder
from tune.modules.loss import LinearCrossEntropyLoss, loss_sum
from tune.training import checkpoint_activations
from tune.training.saving.nonfinite_dump import dump_nonfinite_step, upcoming_sample_ids
from tune.utils.mesh import Mesh

SIZES = {"vocab_size": 31, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "embed_dim": 12, "head_dim": 6}


def make_model() -> TransformerDecoder:
    torch.manual_seed(0)
    return TransformerDecoder(DecoderConfig(**SIZES, intermediate_dim=20, max_seq_len=16)).train()


def make_batches() -> list[dict[str, torch.Tensor]]:
    """Two micro-batches [2, 7] and [2, 5]; token 30 is in the second one alone."""
    generator = torch.Generator().manual_seed(1)
    first = torch.randint(0, 30, (2, 7), generator=generator)
    second = torch.randint(0, 30, (2, 5), generator=generator)
    second[1, 2] = 30
    return [{"tokens": tokens, "labels": tokens.clone()} for tokens in (first, second)]


def loss_of(model: TransformerDecoder, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
    total = loss_sum(LinearCrossEntropyLoss(), model, batch["tokens"], shift_labels(batch["labels"]))
    return total, int((batch["labels"] >= 0).sum())


def train_step(model: TransformerDecoder, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    losses = [loss_of(model, batch)[0] for batch in batches]
    total = torch.stack(losses).sum()
    total.backward()
    return total.detach()


def read_report(folder: Path | None) -> dict[str, Any]:
    assert folder is not None
    report: dict[str, Any] = json.loads((folder / "report_rank0.json").read_text())
    return report


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_bad_weight_is_traced(tmp_path: Path, recomputed: bool) -> None:
    """An embedding that is NaN for one token: one micro-batch holds it, and its embedding is where it begins."""
    model, batches = make_model(), make_batches()
    if recomputed:
        checkpoint_activations(model.layers)
    with torch.no_grad():
        model.tok_embeddings.weight[30, 4] = torch.nan
    train_step(model, batches)
    sampler = ResumableSampler(10, shuffle=True, seed=5)
    sampler.advance(3)
    order = list(sampler)
    folder = dump_nonfinite_step(
        tmp_path,
        123,
        model,
        batches,
        Mesh(),
        sample_ids=upcoming_sample_ids(sampler, batches),
        batch_loss=partial(loss_of, model),
    )
    assert folder == tmp_path / "non_finite_step_000123"
    assert sorted(path.name for path in folder.iterdir()) == [
        "batches_rank0.safetensors",
        "report_rank0.json",
    ]
    report = read_report(folder)
    assert (report["step"], report["rank"], report["world_size"]) == (123, 0, 1)
    assert report["non_finite_weights"] == {
        "num_tensors": 1,
        "of": len(list(model.parameters())),
        "first": {"tok_embeddings.weight": "1 of 372"},
    }
    assert report["non_finite_gradients"]["num_tensors"] > 2
    assert [row["sample_ids"] for row in report["micro_batches"]] == [order[:2], order[2:4]]
    assert [row["shape"] for row in report["micro_batches"]] == [[2, 7], [2, 5]]
    good, bad = report["micro_batches"]
    assert good["loss"] == pytest.approx(loss_of(model, batches[0])[0].item(), rel=1e-5)
    assert bad["loss"] == "nan"
    assert report["first_non_finite_output"] == "tok_embeddings"
    tensors = load_file(folder / "batches_rank0.safetensors")
    assert set(tensors) == {"0.tokens", "0.labels", "1.tokens", "1.labels"}
    for index, batch in enumerate(batches):
        for name, tensor in batch.items():
            assert torch.equal(tensors[f"{index}.{name}"], tensor)


def test_finding_the_module_that_overflows_changes_nothing(tmp_path: Path) -> None:
    """Every weight is finite; the product inside one feed-forward is not."""
    model, batches = make_model(), make_batches()
    with torch.no_grad():
        model.layers[1].mlp.w1.weight.mul_(1e25)
        model.layers[1].mlp.w3.weight.mul_(1e25)
    train_step(model, batches)
    before = {name: weight.grad for name, weight in model.named_parameters()}
    report = read_report(
        dump_nonfinite_step(tmp_path, 4, model, batches, Mesh(), batch_loss=partial(loss_of, model))
    )
    assert report["non_finite_weights"]["num_tensors"] == 0
    assert report["non_finite_gradients"]["num_tensors"] > 0
    assert report["first_non_finite_output"] == "layers.1.mlp.w2"
    assert all(weight.grad is before[name] for name, weight in model.named_parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert model.training


def dump(
    folder: Path, step: int, batches: list[dict[str, torch.Tensor]], mesh: Mesh | None = None
) -> Path | None:
    model = make_model()
    return dump_nonfinite_step(
        folder, step, model, batches, mesh or Mesh(), batch_loss=partial(loss_of, model)
    )


def test_without_more_the_batches_and_counts_are_there(tmp_path: Path) -> None:
    report = read_report(dump(tmp_path, 1, make_batches()))
    assert report["non_finite_gradients"] == {"num_tensors": 0, "of": 0, "first": {}}
    assert report["first_non_finite_output"] is None
    assert "sample_ids" not in report["micro_batches"][0]
    # The same step fails again: the new report takes the old one's place.
    report = read_report(dump(tmp_path, 1, make_batches()[:1]))
    assert len(report["micro_batches"]) == 1


def test_each_rank_has_files_of_its_own(tmp_path: Path) -> None:
    for rank in range(2):
        folder = dump(tmp_path, 9, make_batches(), Mesh(rank=rank, world_size=2))
    assert folder is not None
    assert {path.name for path in folder.iterdir()} == {
        f"{name}_rank{rank}.{ending}"
        for name, ending in (("report", "json"), ("batches", "safetensors"))
        for rank in range(2)
    }


def test_rows_that_only_even_out_the_ranks_are_no_examples() -> None:
    """Five examples over two ranks: the second one's third row is empty."""
    ids = [
        upcoming_sample_ids(ResumableSampler(5, shuffle=False, rank=rank, world_size=2), make_batches())
        for rank in range(2)
    ]
    assert ids == [[[0, 2], [4]], [[1, 3], [None]]]


def test_what_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    assert dump(tmp_path / "file", 2, make_batches()) is None
    record = caplog.records[-1]
    assert record.levelname == "WARNING"
    assert "step 2 could not be kept for study in" in record.message
    # No room: no file of this process may be longer than 100 bytes.
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        assert dump(tmp_path, 3, make_batches()) is None
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "non_finite_step_000003").iterdir()) == []

    # A loss that fails where it is asked again is no more in the way.
    def fail(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        raise RuntimeError("device lost")

    assert dump_nonfinite_step(tmp_path, 4, make_model(), make_batches(), Mesh(), batch_loss=fail) is None
