"""What is written beside the weights, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from sentencepiece import SentencePieceTrainer
from transformers import AutoTokenizer

from tune.checkpoints import open_weights, save_meta, save_model
from tune.errors import CheckpointError
from tune.models import get_tokenizer
from tune.models.llama2 import llama2, llama2_tokenizer
from tune.modules import TransformerDecoder
from tune.tokenizers import SentencePieceTokenizer
from tune.tokenizers import from_checkpoint as tokenizer_from_checkpoint


@pytest.fixture(scope="module")
def model() -> TransformerDecoder:
    return llama2(29, 2, 4, 24, 33, num_kv_heads=2, intermediate_dim=20)


def test_what_a_tokenizer_says_is_written_with_the_model(
    model: TransformerDecoder, tmp_path: Path, spm_file: Path
) -> None:
    (tmp_path / "base").mkdir()
    shutil.copy(spm_file, tmp_path / "base" / "tokenizer.model")
    (tmp_path / "base" / "generation_config.json").write_text('{"eos_token_id": [2, 8], "top_k": 3}')
    tokenizer = tokenizer_from_checkpoint(tmp_path / "base")
    save_model(model, tmp_path / "out", tokenizer=tokenizer)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, [2, 8])
    # Files that stand beside the tokenizer are kept as they are, settings it lacks are added.
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [2, 8], "top_k": 3}
    reference = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert reference("seven green apples")["input_ids"] == tokenizer.encode(
        "seven green apples", add_eos=False
    )
    save_model(model, tmp_path / "bare", tokenizer=SentencePieceTokenizer(spm_file))
    generation = json.loads((tmp_path / "bare" / "generation_config.json").read_text())
    assert generation == {"bos_token_id": 1, "eos_token_id": 2}


@pytest.mark.parametrize("save", [save_model, save_meta])
def test_a_tokenizer_is_saved_under_the_name_tools_look_for(
    model: TransformerDecoder, tmp_path: Path, save: Any
) -> None:
    sentences = iter(["the quick brown fox", "jumps over the lazy dog"] * 20)
    with (tmp_path / "mine.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=sentences, model_writer=file, vocab_size=40, model_type="bpe", minloglevel=2
        )
    tokenizer = get_tokenizer("llama2", path=str(tmp_path / "mine.model"))
    save(model, tmp_path / "out", tokenizer=tokenizer)
    saved = llama2_tokenizer(str(tmp_path / "out" / "tokenizer.model"))
    assert saved.encode("the lazy fox") == tokenizer.encode("the lazy fox")
    if save is save_model:
        config = json.loads((tmp_path / "out" / "config.json").read_text())
        assert (config["bos_token_id"], config["eos_token_id"]) == (tokenizer.bos_id, tokenizer.eos_id)


def test_shards_keep_to_their_size_and_add_up(model: TransformerDecoder, tmp_path: Path) -> None:
    save_model(model, tmp_path, max_shard_bytes=6000, dtype=torch.bfloat16)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert set(index["weight_map"].values()) == set(files)
    total = 0
    for file in files:
        with safe_open(tmp_path / file, "pt") as handle:
            assert handle.metadata() == {"format": "pt"}
            tensors = [handle.get_tensor(name) for name in handle.keys()]  # noqa: SIM118
        size = sum(tensor.nbytes for tensor in tensors)
        assert size <= 6000 or len(tensors) == 1
        total += size
    assert total == index["metadata"]["total_size"] == 2 * model.config.num_parameters()
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert len(open_weights(tmp_path)) == len(list(model.parameters()))


@pytest.mark.parametrize("save", [save_model, save_meta])
def test_a_directory_with_weights_is_not_written_to(
    model: TransformerDecoder, tmp_path: Path, save: Any
) -> None:
    save(model, tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds weights already"):
        save(model, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        save(model, tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be made"):
        save(model, tmp_path / "file" / "below")


def test_files_can_be_read_as_the_umask_says(model: TransformerDecoder, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    modes = {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert len(modes) == 1
    assert not list(tmp_path.glob(".*"))


def test_a_model_without_a_family_is_told_so(model: TransformerDecoder, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="without a family"):
        save_model(TransformerDecoder(model.config), tmp_path)
