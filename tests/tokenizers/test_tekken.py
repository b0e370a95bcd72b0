"""tekken.json: tiktoken's ids after the special tokens', which come first."""

from __future__ import annotations

import base64
import json
import shutil

import pytest
import tiktoken
import transformers
from trained_tokenizers import HARD_TEXTS, PATTERN, tiktoken_lines, train

from tune.errors import TokenizerError
from tune.tokenizers import HFTokenizer, from_checkpoint, tekken_tokenizer

NUM_SPECIAL = 23


@pytest.fixture(scope="module")
def tokens():
    lines = tiktoken_lines(train("llama3")).splitlines()
    return [base64.b64decode(line.split()[0]) for line in lines]


@pytest.fixture
def content(tokens):
    # More tokens than are used, as in the published files.
    listed = [*tokens, b"not used", b"nor this"]
    return {
        "config": {
            "pattern": PATTERN % r"\p{N}",
            "default_vocab_size": len(tokens) + NUM_SPECIAL,
            "default_num_special_tokens": NUM_SPECIAL,
            "version": "v3",
        },
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for rank, token in enumerate(listed)
        ],
    }


def write(folder, content):
    (folder / "tekken.json").write_text(json.dumps(content))
    return folder


def test_ids_are_those_of_tiktoken_after_the_special_ones(content, tokens, tmp_path):
    ours = from_checkpoint(write(tmp_path, content))
    assert isinstance(ours, HFTokenizer)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    reference = tiktoken.Encoding(
        "tekken", pat_str=content["config"]["pattern"], mergeable_ranks=ranks, special_tokens={}
    )
    for text in HARD_TEXTS:
        expected = [rank + NUM_SPECIAL for rank in reference.encode_ordinary(text)]
        assert ours.encode(text) == [1, *expected, 2]
        assert ours.decode(expected) == text
    assert ours.vocab_size == len(tokens) + NUM_SPECIAL
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (1, 2, 11)
    assert (ours.token(3), ours.token(19), ours.token(22)) == ("[INST]", "[TOOL_CONTENT]", "<SPECIAL_22>")
    assert ours.encode_pieces([1, 3, "walk", 4]) == [1, 3, *ours.encode("walk", False, False), 4]
    assert ours.encode("[INST]walk[/INST]", add_eos=False, parse_special=True) == ours.encode_pieces(
        [1, 3, "walk", 4]
    )


def test_special_tokens_may_be_listed(content, tmp_path):
    names = ["<unk>", "<s>", "</s>", "[MINE]"]
    content["special_tokens"] = [
        {"rank": rank, "token_str": name, "is_control": True} for rank, name in enumerate(names)
    ]
    ours = from_checkpoint(write(tmp_path, content))
    assert (ours.token(3), ours.token(4), ours.pad_id) == ("[MINE]", "<SPECIAL_4>", 0)


def test_the_saved_directory_gives_the_same_ids_elsewhere(content, tmp_path):
    ours = from_checkpoint(write(tmp_path, content))
    saved = tmp_path / "saved"
    saved.mkdir()
    for file in ours.files():
        shutil.copyfile(file, saved / file.name)
    ours.write_settings(saved)
    reference = transformers.AutoTokenizer.from_pretrained(saved)
    assert from_checkpoint(saved).path.name == "tokenizer.json"
    for text in HARD_TEXTS:
        assert reference.encode(text, split_special_tokens=True) == ours.encode(text, add_eos=False)
        assert from_checkpoint(saved).encode(text) == ours.encode(text)


def test_damaged_files_are_named(content, tmp_path):
    for broken, says in (
        ({"vocab": []}, "no config with a vocab"),
        ({**content, "config": {}}, "lacks pattern"),
        ({**content, "vocab": content["vocab"][:200]}, r"holds 200 tokens.*cut short"),
        ({**content, "vocab": [{"rank": 0}, *content["vocab"][1:]]}, "damaged"),
        ({**content, "vocab": [5, *content["vocab"][1:]]}, "damaged"),
        ({**content, "special_tokens": [5]}, "no list of at most 23"),
    ):
        with pytest.raises(TokenizerError, match=rf"tekken\.json.*{says}"):
            tekken_tokenizer(str(write(tmp_path, broken)))
