"""Packing: documents stay whole, and loss and gradients are those of the documents one by one."""

from __future__ import annotations

import json
from bisect import bisect_left, insort

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.data import pack_lengths, padded_collate_sft, shift_labels
from tune.datasets import PackedDataset, instruct_dataset
from tune.errors import DataError
from tune.tokenizers import SentencePieceTokenizer


def packed_one_by_one(lengths, capacity):
    """The definition: each document, from the longest down, goes where the least is left."""
    packs, room = [], []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        tightest = bisect_left(room, (lengths[index], 0))
        left, pack = room.pop(tightest) if tightest < len(room) else (capacity, len(packs))
        if pack == len(packs):
            packs.append([])
        packs[pack].append(index)
        if left > lengths[index]:
            insort(room, (left - lengths[index], pack))
    return [sorted(pack) for pack in packs]


@given(lengths=st.lists(st.integers(1, 17), max_size=60))
@settings(max_examples=200)
def test_every_document_is_in_one_pack_and_none_overflows(lengths):
    packs = pack_lengths(lengths, 17)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in pack) <= 17 for pack in packs)
    assert list(packs) == packed_one_by_one(lengths, 17)
    # Two packs that would fit into one would be a waste.
    sizes = sorted(sum(lengths[index] for index in pack) for pack in packs)
    assert len(sizes) < 2 or sizes[0] + sizes[1] > 17


def test_the_tightest_room_is_filled_first():
    packs = pack_lengths([4, 6, 5, 3, 2], 10)
    assert list(packs) == packs[:] == [[0, 1], [2, 3, 4]]
    assert packs[-1] == [2, 3, 4]
    with pytest.raises(IndexError, match="index 2 is outside of the 2 sequences"):
        packs[2]
    with pytest.raises(DataError, match="11 tokens does not fit into a packed sequence of 10"):
        pack_lengths([3, 11], 10)


@pytest.fixture
def dataset(spm_file, tmp_path):
    words = ["the river", "seven", "green apple answer", "walk", "twelve"]
    rows = [
        {"question": " ".join(words[: n % 4 + 1]), "answer": " ".join(words[-(n % 3) - 1 :])}
        for n in range(9)
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return instruct_dataset(SentencePieceTokenizer(spm_file), source=str(file), train_on_input=True)


def test_packed_examples_are_the_examples(dataset):
    packed = PackedDataset(dataset, max_seq_len=64)
    assert len(packed) < len(dataset)
    pieces = []
    for index in range(len(packed)):
        item = packed[index]
        starts = [place for place, position in enumerate(item["input_pos"]) if position == 0]
        assert len(item["tokens"]) == packed.length(index) <= 64
        for start, end in zip(starts, [*starts[1:], len(item["tokens"])]):
            assert item["input_pos"][start:end] == list(range(end - start))
            assert item["labels"][start] == -100
            pieces.append((item["tokens"][start:end], item["labels"][start + 1 : end]))
    assert sorted(pieces) == sorted((item["tokens"], item["labels"][1:]) for item in dataset)
    assert packed.render_prompt("x") == dataset.render_prompt("x")
    assert "packed into" in str(packed.report())
    assert packed.report().num_tokens == sum(packed.length(index) for index in range(len(packed)))


def test_packed_loss_and_gradients_equal_unpacked(dataset):
    llama2 = pytest.importorskip("tune.models.llama2")
    from tune.modules.loss import LinearCrossEntropyLoss, loss_sum

    torch.manual_seed(3)
    model = llama2.llama2(
        vocab_size=700,
        num_layers=2,
        num_heads=6,
        num_kv_heads=3,
        embed_dim=48,
        max_seq_len=64,
        intermediate_dim=56,
    )
    model.reset_parameters()

    def loss_and_gradients(examples, batch_size):
        model.zero_grad()
        total = 0.0
        for start in range(0, len(examples), batch_size):
            batch = padded_collate_sft(
                [examples[i] for i in range(start, min(start + batch_size, len(examples)))]
            )
            labels = shift_labels(batch.pop("labels"))
            loss = loss_sum(LinearCrossEntropyLoss(), model, labels=labels, **batch)
            loss.backward()
            total += loss.item()
        return total, [parameter.grad.clone() for parameter in model.parameters()]

    one_by_one = loss_and_gradients(dataset, 1)
    padded = loss_and_gradients(dataset, 4)
    packed = loss_and_gradients(PackedDataset(dataset, max_seq_len=64), 2)
    for other in (padded, packed):
        assert other[0] == pytest.approx(one_by_one[0], rel=1e-5)
        for gradient, expected in zip(other[1], one_by_one[1], strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    # The proof is worth something only if a document that sees the one before would have another loss.
    leaking = [
        {**item, "input_pos": range(len(item["tokens"]))} for item in PackedDataset(dataset, max_seq_len=64)
    ]
    assert loss_and_gradients(leaking, 2)[0] != pytest.approx(one_by_one[0], rel=1e-4)
