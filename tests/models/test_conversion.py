"""Every layout into every other, bit for bit; and what is refused before, while and after it is written."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases_llama import CASES as LLAMA_CASES
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import tune.models
from tune.checkpoints import open_weights, same_bits, save_meta, save_model
from tune.errors import CheckpointError, ConfigError
from tune.models import conversion
from tune.models.conversion import convert_checkpoint
from tune.models.llama2 import llama2
from tune.modules import TransformerDecoder

VOCAB, LAYERS, HEADS, KV_HEADS, WIDTH, HIDDEN = 29, 3, 4, 2, 24, 20


def build(**changes: Any) -> TransformerDecoder:
    return llama2(VOCAB, LAYERS, HEADS, WIDTH, 33, num_kv_heads=KV_HEADS, intermediate_dim=HIDDEN, **changes)


def tensors_of(directory: Path) -> dict[str, Tensor]:
    source = open_weights(directory)
    return {name: source.read(name).clone() for name in source}


def assert_same(first: Path, second: Path) -> None:
    left, right = tensors_of(first), tensors_of(second)
    assert left.keys() == right.keys()
    assert all(same_bits(left[name], right[name]) for name in left)


def assert_untouched(directory: Path) -> None:
    """Nothing stands there, or nothing was made."""
    assert not directory.exists() or not list(directory.iterdir())


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    save_model(build().to(torch.bfloat16), tmp_path / "hf", max_shard_bytes=6000)
    return tmp_path / "hf"


def write_bins(hf: Path, directory: Path) -> Path:
    """The same weights as two pytorch_model-*.bin with an index."""
    directory.mkdir()
    shutil.copy(hf / "config.json", directory)
    tensors = list(tensors_of(hf).items())
    places = {}
    for number, part in enumerate((tensors[:9], tensors[9:]), start=1):
        name = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save(dict(part), directory / name)
        places.update({tensor: name for tensor, _ in part})
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    return directory


def write_parallel(hf: Path, directory: Path) -> Path:
    """The same weights as Meta cuts them for two devices."""
    whole = directory.with_name("whole")
    save_meta(tune.models.from_checkpoint(hf, dtype=torch.bfloat16), whole)
    directory.mkdir()
    shutil.copy(whole / "params.json", directory)
    parts: list[dict[str, Tensor]] = [{}, {}]
    for name, tensor in tensors_of(whole).items():
        rows = ("wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight")
        dim = (
            0
            if name.endswith(rows)
            else 1
            if name.endswith(("wo.weight", "w2.weight", "ngs.weight"))
            else None
        )
        for part, piece in zip(parts, (tensor, tensor) if dim is None else tensor.tensor_split(2, dim)):
            part[name] = piece.clone()
    for number, part in enumerate(parts):
        torch.save(part, directory / f"consolidated.{number:02}.pth")
    return directory


def write_layout(kind: str, hf: Path, directory: Path) -> Path:
    if kind == "bin":
        return write_bins(hf, directory)
    if kind == "parallel":
        return write_parallel(hf, directory)
    convert_checkpoint(hf, directory, kind)
    return directory


@pytest.mark.parametrize("to", ["hf", "meta", "tune"])
@pytest.mark.parametrize("start", ["hf", "bin", "meta", "parallel", "tune"])
def test_every_layout_goes_into_every_other(hf: Path, tmp_path: Path, start: str, to: str) -> None:
    source = write_layout(start, hf, tmp_path / "start")
    report = convert_checkpoint(source, tmp_path / "out", to)
    assert (report.num_exact, report.num_cast) == (len(open_weights(source)), 0)
    assert report.num_bytes == sum(tensor.nbytes for tensor in tensors_of(tmp_path / "out").values())
    assert report.dtypes == ("bfloat16",)
    convert_checkpoint(tmp_path / "out", tmp_path / "back", "hf")
    assert_same(hf, tmp_path / "back")
    # The bytes are one thing, that the model computes the same another.
    tokens = torch.randint(0, VOCAB, (2, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = tune.models.from_checkpoint(tmp_path / "out")(tokens)
        assert torch.equal(logits, tune.models.from_checkpoint(hf)(tokens))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("through", ["meta", "tune"])
def test_there_and_back_and_there_again(tmp_path: Path, through: str, tied: bool) -> None:
    save_model(build(tie_word_embeddings=tied), tmp_path / "hf")
    convert_checkpoint(tmp_path / "hf", tmp_path / "a", through)
    convert_checkpoint(tmp_path / "a", tmp_path / "b", "hf")
    convert_checkpoint(tmp_path / "b", tmp_path / "c", through)
    assert_same(tmp_path / "hf", tmp_path / "b")
    assert_same(tmp_path / "a", tmp_path / "c")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["tie_word_embeddings"] is tied
    if through == "meta":  # which always has it
        assert "output.weight" in open_weights(tmp_path / "a")


@pytest.mark.parametrize("case", ["llama", "llama3.2-tied", "llama-wide-heads", "llama-biases"])
def test_what_is_written_from_pickles_loads_in_the_reference(case: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    reference = AutoModelForCausalLM.from_config(LLAMA_CASES[case]()).eval()
    reference.save_pretrained(tmp_path / "made")
    weights = load_file(tmp_path / "made" / "model.safetensors")
    torch.save(weights, tmp_path / "made" / "pytorch_model.bin")
    (tmp_path / "made" / "model.safetensors").unlink()
    convert_checkpoint(tmp_path / "made", tmp_path / "out", max_shard_bytes=20_000)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokens = torch.randint(0, 61, (2, 11))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, reference(tokens).logits)


def test_a_saved_step_an_output_directory_and_one_file_are_found(hf: Path, tmp_path: Path) -> None:
    shutil.copytree(hf, tmp_path / "out" / "step_000007" / "model")
    for number, source in enumerate((tmp_path / "out", tmp_path / "out" / "step_000007")):
        convert_checkpoint(source, tmp_path / f"native{number}", "tune")
        assert_same(tmp_path / f"native{number}", tmp_path / "native0")
    convert_checkpoint(tmp_path / "native0" / "torchtune_model_0.pt", tmp_path / "again")
    assert_same(tmp_path / "again", hf)


@pytest.mark.parametrize(("to", "file"), [("meta", "consolidated.00.pth"), ("tune", "torchtune_model_0.pt")])
def test_pickles_are_what_torch_itself_writes(hf: Path, tmp_path: Path, to: str, file: str) -> None:
    convert_checkpoint(hf, tmp_path / "out", to)
    path = tmp_path / "out" / file
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # every checksum
        names = [entry.filename.partition("/")[2] for entry in archive.infolist()]
    weights = torch.load(path, weights_only=True)
    mapped = torch.load(path, weights_only=True, mmap=True)
    assert all(same_bits(weights[name], mapped[name]) for name in weights)
    torch.save(weights, tmp_path / "theirs.pth")
    with zipfile.ZipFile(tmp_path / "theirs.pth") as archive:
        assert [entry.filename.partition("/")[2] for entry in archive.infolist()] == names
    assert path.stat().st_size == pytest.approx((tmp_path / "theirs.pth").stat().st_size, abs=4096)
    if to == "tune":
        model = build().to(torch.bfloat16)
        assert {name: tensor.shape for name, tensor in weights.items()} == {
            name: parameter.shape for name, parameter in model.named_parameters()
        }


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_the_type_is_changed_on_the_way(
    hf: Path, tmp_path: Path, dtype: str, torch_dtype: torch.dtype
) -> None:
    report = convert_checkpoint(hf, tmp_path / "out", dtype=dtype)
    assert (report.num_exact, report.num_cast) == (0, len(open_weights(hf)))
    for name, tensor in tensors_of(hf).items():
        assert same_bits(open_weights(tmp_path / "out").read(name), tensor.to(torch_dtype))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == str(torch_dtype).removeprefix("torch.")


def test_a_value_that_the_type_cannot_hold_stops_it(tmp_path: Path) -> None:
    model = build()
    with torch.no_grad():
        model.layers[1].mlp.w2.weight[3, 4] = 7e4
    save_model(model, tmp_path / "hf")
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mlp\.down_proj\.weight .*7e\+04.*float16 ends at 6\.55e\+04"
    ):
        convert_checkpoint(tmp_path / "hf", tmp_path / "out", dtype="fp16")
    assert not (tmp_path / "out").exists()


def test_tensors_keep_their_own_types_and_their_strangest_bits(hf: Path, tmp_path: Path) -> None:
    weights = {name: tensor.float() if "norm" in name else tensor for name, tensor in tensors_of(hf).items()}
    weights["model.norm.weight"][:3] = torch.tensor([float("nan"), -0.0, float("inf")])
    for file in hf.glob("model*"):
        file.unlink()
    save_file(weights, hf / "model.safetensors")
    report = convert_checkpoint(hf, tmp_path / "meta", "meta")
    assert report.dtypes == ("bfloat16", "float32")
    convert_checkpoint(tmp_path / "meta", tmp_path / "again", "hf")
    again = tensors_of(tmp_path / "again")
    assert all(same_bits(again[name], tensor) for name, tensor in weights.items())


def test_what_belongs_to_a_model_comes_along(hf: Path, tmp_path: Path, spm_file: Path) -> None:
    texts = {
        "generation_config.json": '{"top_k": 3}',
        "chat_template.jinja": "{{ messages }}",
        "LICENSE.txt": "terms",
        "USE_POLICY.md": "policy",
        "README.md": "about",
        "notes.txt": "not part of it",
        "modeling_mine.py": "never",
        "optimizer.pt": "never",
    }
    for name, text in texts.items():
        (hf / name).write_text(text)
    shutil.copy(spm_file, hf / "tokenizer.model")
    (hf / "additional_chat_templates").mkdir()
    (hf / "additional_chat_templates" / "tools.jinja").write_text("x")
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps({**config, "eos_token_id": [5, 7], "pad_token_id": 4}))
    convert_checkpoint(hf, tmp_path / "meta", "meta")
    convert_checkpoint(tmp_path / "meta", tmp_path / "out", "hf")
    report = convert_checkpoint(hf, tmp_path / "direct", "hf")
    for name, text in texts.items():
        for folder in (tmp_path / "meta", tmp_path / "out"):
            assert (
                ((folder / name).read_text() == text)
                if not text.startswith("n")
                else not (folder / name).exists()
            )
    assert (tmp_path / "out" / "additional_chat_templates" / "tools.jinja").read_text() == "x"
    assert (tmp_path / "meta" / "tokenizer.model").read_bytes() == spm_file.read_bytes()
    assert not (tmp_path / "meta" / "config.json").exists()
    assert "LICENSE.txt" in report.companions
    config = json.loads((tmp_path / "direct" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == ([5, 7], 4)
    # What came from Meta's layout has no settings of its own: other tools need them, and the ids.
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)
    assert (tmp_path / "out" / "tokenizer_config.json").is_file()


def test_metas_downloads_keep_the_tokenizer_one_folder_above(
    hf: Path, tmp_path: Path, spm_file: Path
) -> None:
    convert_checkpoint(hf, tmp_path / "llama" / "7b", "meta")
    shutil.copy(spm_file, tmp_path / "llama" / "tokenizer.model")
    (tmp_path / "llama" / "LICENSE").write_text("terms")
    report = convert_checkpoint(tmp_path / "llama" / "7b", tmp_path / "out")
    assert report.companions == ("LICENSE", "tokenizer.model")


# ---- Refused before anything is written --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        ({"to": "gguf"}, ConfigError, "no layout 'gguf': only hf, meta, tune"),
        ({"dtype": "int8"}, ConfigError, "no dtype 'int8'"),
        ({"dest": "hf"}, CheckpointError, "is the source itself"),
        ({"dest": "hf/inside"}, CheckpointError, "lie in one another"),
        ({"dest": "."}, CheckpointError, "lie in one another"),
        ({"dest": "full"}, CheckpointError, r"full holds model\.safetensors already.*--force"),
        ({"dest": "notes"}, CheckpointError, r"notes holds n0, n1, n2, n3 and 3 more already"),
        ({"dest": "file"}, CheckpointError, "file is a file"),
        ({"dest": "file/below"}, CheckpointError, r"cannot be written: Not a directory"),
        ({"src": "nowhere"}, CheckpointError, "no folder"),
        ({"src": "notes"}, CheckpointError, "no model was found"),
    ],
)
def test_what_cannot_be_meant(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: dict[str, str], error: type, said: str
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "model.safetensors").touch()
    (tmp_path / "notes").mkdir()
    for number in range(7):
        (tmp_path / "notes" / f"n{number}").touch()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=said):
        convert_checkpoint(**{"src": "hf", "dest": "out", **words})
    assert sorted(tmp_path.rglob("*")) == before


def test_a_family_without_that_layout_says_which_it_has(hf: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from dataclasses import replace

    from tune.models.llama2.family import LLAMA

    monkeypatch.setattr(
        conversion,
        "read_model_config",
        lambda folder: (
            replace(LLAMA, meta=None, torchtune=None),
            tune.models.loading.read_model_config(folder)[1],
        ),
    )
    for to, name in (("meta", "Meta"), ("tune", "torchtune")):
        with pytest.raises(CheckpointError, match=rf"llama family has no {name} layout.*converted to hf$"):
            convert_checkpoint(hf, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_a_model_that_a_layout_cannot_describe_is_refused(tmp_path: Path) -> None:
    reference = AutoModelForCausalLM.from_config(LLAMA_CASES["llama-biases"]())
    reference.save_pretrained(tmp_path / "biased")
    with pytest.raises(CheckpointError, match=r"no place for layers\.N\.attn\.q_proj\.bias"):
        convert_checkpoint(tmp_path / "biased", tmp_path / "out", "meta")
    assert not (tmp_path / "out").exists()
    save_model(build(), tmp_path / "stretched")
    config = json.loads((tmp_path / "stretched" / "config.json").read_text())
    scaling = {"rope_type": "linear", "factor": 2.0}
    (tmp_path / "stretched" / "config.json").write_text(json.dumps({**config, "rope_scaling": scaling}))
    with pytest.raises(CheckpointError):
        convert_checkpoint(tmp_path / "stretched", tmp_path / "out", "meta")
    assert not (tmp_path / "out").exists()


def test_a_configuration_that_lies_about_sizes_is_caught_at_once(hf: Path, tmp_path: Path) -> None:
    config = json.loads((hf / "config.json").read_text())
    for change, said in (
        ({"num_hidden_layers": 10**9}, "num_layers is 1000000000"),
        ({"num_hidden_layers": 900}, "speaks of 900 layers"),
        ({"vocab_size": 10**12}, "do not fit the model"),
        ({"num_hidden_layers": 0}, "num_layers is 0"),
        ({"num_hidden_layers": 2}, "unknown to the model"),
    ):
        (hf / "config.json").write_text(json.dumps({**config, **change}))
        started = time.monotonic()
        with pytest.raises(CheckpointError, match=said):
            convert_checkpoint(hf, tmp_path / "out")
        assert time.monotonic() - started < 5
    assert not (tmp_path / "out").exists()


def test_room_on_the_disk_is_looked_at_first(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"need 2\.21e-05 GB and .*/out has 1e-06 GB free"):
        convert_checkpoint(hf, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Ended on the way --------------------------------------------------------------------------------------


class Stopping:
    """Raises when the conversion has come to some place."""

    def __init__(self, phase: str, error: BaseException) -> None:
        self.phase, self.error, self.now = phase, error, ""

    def start(self, phase: str, num_bytes: int) -> None:
        self.now = phase

    def advance(self, num_bytes: int) -> None:
        if self.now == self.phase:
            raise self.error


@pytest.mark.parametrize("phase", ["write", "verify"])
@pytest.mark.parametrize("to", ["hf", "meta", "tune"])
@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupted_conversion_leaves_nothing_and_can_be_repeated(
    hf: Path, tmp_path: Path, to: str, phase: str, exists: bool
) -> None:
    if exists:
        (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(hf, tmp_path / "out", to, progress=Stopping(phase, KeyboardInterrupt()))
    assert (tmp_path / "out").exists() is exists
    assert_untouched(tmp_path / "out")
    convert_checkpoint(hf, tmp_path / "out", to)
    tune.models.from_checkpoint(tmp_path / "out")


def test_a_full_disk_is_said_and_leaves_nothing(hf: Path, tmp_path: Path) -> None:
    # Files may not grow beyond a limit, which fails like a full disk: at once, or after some tensors.
    code = (
        "import resource, sys; from tune.models.conversion import convert_checkpoint; "
        "from tune.errors import CheckpointError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        f"try: convert_checkpoint({str(hf)!r}, {str(tmp_path / 'out')!r}, sys.argv[1])\n"
        "except CheckpointError as error: print(error)"
    )
    for to, limit in (("hf", "9000"), ("meta", "9000")):
        done = subprocess.run(
            [sys.executable, "-c", code, to, limit], capture_output=True, text=True, check=False
        )
        assert "cannot be written" in done.stdout, done.stderr
        assert ("File too large" if to == "hf" else "is the disk full?") in done.stdout
        assert not (tmp_path / "out").exists()


def test_a_conversion_killed_midway_is_no_model_and_can_be_repeated(hf: Path, tmp_path: Path) -> None:
    code = (
        "import os, sys; from tune.models.conversion import convert_checkpoint\n"
        "class Killer:\n"
        "    def start(self, phase, num_bytes): self.phase = phase\n"
        "    def advance(self, num_bytes):\n"
        f"        if self.phase == 'verify': os.kill(os.getpid(), {signal.SIGKILL:d})\n"
        f"convert_checkpoint({str(hf)!r}, {str(tmp_path / 'out')!r}, progress=Killer())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".converting"]
    with pytest.raises(CheckpointError, match="no model was found"):
        tune.models.from_checkpoint(tmp_path / "out")
    convert_checkpoint(hf, tmp_path / "out")
    assert_same(hf, tmp_path / "out")
    assert not (tmp_path / "out" / ".converting").exists()


def test_killed_while_files_get_their_places_it_is_no_model_either(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace: Callable[..., None] = os.replace
    moved = []

    def stop_after_three(source: Path, target: Path) -> None:
        if Path(target).parent == tmp_path / "out":
            moved.append(target)
            if len(moved) > 3:
                raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(hf, tmp_path / "out", max_shard_bytes=6000)
    monkeypatch.undo()
    with pytest.raises(CheckpointError):
        tune.models.from_checkpoint(tmp_path / "out")
    convert_checkpoint(hf, tmp_path / "out")
    assert_same(hf, tmp_path / "out")


def test_two_conversions_into_one_folder_do_not_mix(hf: Path, tmp_path: Path) -> None:
    class Second:
        def start(self, phase: str, num_bytes: int) -> None:
            with pytest.raises(CheckpointError, match="another conversion is writing"):
                convert_checkpoint(hf, tmp_path / "out", "meta")

        def advance(self, num_bytes: int) -> None: ...

    convert_checkpoint(hf, tmp_path / "out", progress=Second())
    assert_same(hf, tmp_path / "out")


def test_force_replaces_a_model_and_nothing_else(hf: Path, tmp_path: Path) -> None:
    save_model(build(), tmp_path / "out", max_shard_bytes=3000)
    (tmp_path / "out" / "diary.txt").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        convert_checkpoint(
            hf, tmp_path / "out", "meta", force=True, progress=Stopping("verify", KeyboardInterrupt())
        )
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 3  # the old one is still whole
    tune.models.from_checkpoint(tmp_path / "out")
    convert_checkpoint(hf, tmp_path / "out", "meta", force=True)
    held = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert held == ["consolidated.00.pth", "diary.txt", "params.json"]


def test_what_does_not_read_back_the_same_is_not_kept(
    hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = conversion.write_shards

    def write_badly(folder: Path, *rest: Any) -> None:
        write(folder, *rest)
        file = folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)

    monkeypatch.setattr(conversion, "write_shards", write_badly)
    with pytest.raises(CheckpointError, match="reads back with other values"):
        convert_checkpoint(hf, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- Odd surroundings --------------------------------------------------------------------------------------


def test_a_source_that_may_only_be_read_is_enough(hf: Path, tmp_path: Path) -> None:
    for path in [*hf.iterdir(), hf]:
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~0o222)
    try:
        convert_checkpoint(hf, tmp_path / "out", "meta")
        assert sorted(path.name for path in hf.iterdir()) == sorted(
            ["config.json", "model.safetensors.index.json", *(file.name for file in hf.glob("*.safetensors"))]
        )
    finally:
        hf.chmod(0o755)


@pytest.mark.parametrize("name", ["a b'c\"", "ünï 模型", "-dash", "new\nline", "*?[x]"])
def test_names_of_folders_may_be_anything(hf: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(hf, tmp_path / name / "in")
    convert_checkpoint(tmp_path / name / "in", tmp_path / name / "out", "meta")
    convert_checkpoint(tmp_path / name / "out", tmp_path / "back")
    assert_same(hf, tmp_path / "back")


def test_links_into_a_cache_are_followed(hf: Path, tmp_path: Path) -> None:
    linked = tmp_path / "snapshot"
    linked.mkdir()
    for path in hf.iterdir():
        (linked / path.name).symlink_to(path)
    convert_checkpoint(linked, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())
    assert_same(hf, tmp_path / "out")


# ---- Every family ------------------------------------------------------------------------------------------

ALL_CASES = {
    name: make
    for file in sorted(Path(__file__).parent.glob("cases_*.py"))
    for name, make in importlib.import_module(file.stem).CASES.items()
}


# What a family's layout has no words for.
UNSPEAKABLE = {
    ("llama-wide-heads", "meta"): "cannot express head_dim 14",
    ("llama-biases", "meta"): r"no place for layers\.N\.attn\.q_proj\.bias",
    ("llama-linear-rope", "meta"): "cannot express rope_scaling LinearScaling",
    ("llama-yarn-rope", "meta"): "cannot express rope_scaling YarnScaling",
}


@pytest.mark.parametrize("case", ALL_CASES)
def test_every_family_goes_through_every_layout_it_has(case: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    reference = AutoModelForCausalLM.from_config(ALL_CASES[case]())
    reference.save_pretrained(tmp_path / "made")
    convert_checkpoint(tmp_path / "made", tmp_path / "hf", max_shard_bytes=40_000)
    family = tune.models.from_checkpoint(tmp_path / "made").family
    assert family is not None
    for to, layout in (("meta", family.meta), ("tune", family.torchtune)):
        # Only what the layout has no words for may be refused, and before anything is written.
        refused = (
            contextlib.nullcontext() if layout else pytest.raises(CheckpointError, match=r"has no .* layout")
        )
        if (case, to) in UNSPEAKABLE:
            refused = pytest.raises(CheckpointError, match=UNSPEAKABLE[case, to])
        with refused as caught:
            convert_checkpoint(tmp_path / "hf", tmp_path / to, to)
        if caught is not None:
            assert not (tmp_path / to).exists()
            continue
        report = convert_checkpoint(tmp_path / to, tmp_path / f"hf-{to}")
        assert report.num_cast == 0
        assert_same(tmp_path / "hf", tmp_path / f"hf-{to}")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    for name, tensor in again.state_dict().items():
        assert same_bits(tensor, reference.state_dict()[name]), name
