"""Which files are taken: one copy of the weights, nothing of other programs, no name that leads astray."""

from __future__ import annotations

import pytest

from tune.errors import HubError
from tune.hub.listing import RemoteFile, Repository, check_file_name
from tune.hub.selection import select_files

HF = ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
      "model.safetensors.index.json", "tokenizer.json"]  # fmt: skip
BIN = ["pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json"]
ORIGINAL = ["original/consolidated.00.pth", "original/params.json", "original/tokenizer.model"]
META = ["consolidated.00.pth", "consolidated.01.pth", "params.json", "tokenizer.model"]
OTHERS = ["tf_model.h5", "flax_model.msgpack", "model.gguf", "onnx/model.onnx", "modeling_x.py", "runs/a/events.out",
          "training_args.bin", "optimizer.pt", ".gitattributes", "rust_model.ot"]  # fmt: skip


def repository(*names: str) -> Repository:
    return Repository("a/b", "c" * 40, tuple(RemoteFile(name, 7, "d" * 64) for name in sorted(names)))


def chosen(names: list[str], ignored: list[str] | None = None) -> set[str]:
    return {file.name for file in select_files(repository(*names), ignored).files}


def test_safetensors_come_before_other_copies() -> None:
    assert chosen(HF + BIN + ORIGINAL + META + OTHERS) == {*HF, "tokenizer.model"}
    assert select_files(repository(*HF), None).layout == "safetensors"


def test_pickles_are_taken_where_there_is_nothing_else() -> None:
    assert chosen(["config.json", *BIN, *OTHERS]) == {"config.json", *BIN}
    assert chosen(["config.json", *BIN, *ORIGINAL]) == {"config.json", *BIN}


def test_metas_layout() -> None:
    assert chosen(META) == set(META)
    assert chosen(["config.json", *ORIGINAL]) == {"config.json", *ORIGINAL}
    assert select_files(repository("config.json", *ORIGINAL), None).layout == "meta_original"


def test_mistrals_own_copy_is_left_out() -> None:
    names = [*HF, "consolidated.safetensors", "params.json", "tokenizer.model.v3"]
    assert chosen(names) == {*HF, "tokenizer.model.v3"}


def test_patterns_choose_another_copy() -> None:
    assert chosen(HF + BIN, ["*.safetensors"]) == {"config.json", "tokenizer.json", *BIN}
    assert chosen(HF + ORIGINAL, ["*.safetensors"]) == {"config.json", "tokenizer.json", *ORIGINAL}
    assert chosen([*HF, "x.py"], ["*.json"]) == {*[n for n in HF if n.endswith(".safetensors")], "x.py"}
    assert chosen([*HF, "sub/a.txt", "sub/b.md"], ["sub/"]) == set(HF)


def test_an_empty_pattern_takes_all() -> None:
    assert chosen(HF + BIN + OTHERS, [""]) == set(HF + BIN + OTHERS)


def test_nothing_left_and_nothing_readable_are_said() -> None:
    with pytest.raises(HubError, match="leaves nothing of the 5 files"):
        select_files(repository(*HF), ["*"])
    with pytest.raises(HubError, match=r"no weights that tune reads, only \.gguf, \.h5"):
        select_files(repository("config.json", "model.gguf", "tf_model.h5"), None)
    for names in ([], [".gitattributes"]):  # an empty repository, and all that a new one holds
        with pytest.raises(HubError, match=rf"no weights at all \({len(names)} files\)"):
            select_files(repository(*names), None)
    with pytest.raises(HubError, match=r"no weights at all \(1 files\)"):
        select_files(repository("README.md"), None)


def test_every_file_is_either_taken_or_left() -> None:
    everything = repository(*HF, *BIN, *ORIGINAL, *OTHERS)
    selection = select_files(everything, None)
    assert sorted((*selection.files, *selection.skipped), key=lambda file: file.name) == list(
        everything.files
    )


@pytest.mark.parametrize(
    "name", ["config.json", "original/params.json", "a/b/c.txt", "odd name (1).txt", "ü.json", "..x"]
)
def test_honest_names(name: str) -> None:
    check_file_name(name, "a/b")


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "a/./b", "..", "", "a/", "a\\b", "C:evil", "a\0b", "a\nb",
     "~/x", "x\x1b[31m", ".git/hooks/post-checkout", ".GIT/config", ".tune_download/origin.json", "a/" * 20 + "b",
     "n" * 300, "x\u202egpj.exe"],
)  # fmt: skip
def test_names_that_lead_astray(name: str) -> None:
    with pytest.raises(HubError, match="holds a file whose name"):
        check_file_name(name, "a/b")
