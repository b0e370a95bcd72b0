"""Every layout into every other, bit for bit; and what is refused before, while and after it is written."""

from __future__ import annotations

import contextlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from cases import CASES
from conversion_checkpoints import VOCAB, assert_same, build, save_sharded, tensors_of
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import tune.models
import tune.tokenizers
from tune.checkpoints import open_weights, same_bits, save_meta, save_model
from tune.cli.main import main
from tune.errors import CheckpointError
from tune.models.conversion import convert_checkpoint


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    return save_sharded(tmp_path / "hf")


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
    reference = AutoModelForCausalLM.from_config(CASES[case]()).eval()
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
    assert "LICENSE.txt" in report.side_files
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
    assert report.side_files == ("LICENSE", "tokenizer.model")


def test_a_converted_model_continues_a_prompt_as_the_reference(
    tmp_path: Path, spm_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(4)
    config = CASES["llama"]()
    config.vocab_size, config.max_position_embeddings = 600, 512
    reference = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    reference.save_pretrained(tmp_path / "made")
    shutil.copy(spm_file, tmp_path / "made" / "tokenizer.model")
    convert_checkpoint(tmp_path / "made", tmp_path / "meta", "meta")
    convert_checkpoint(tmp_path / "meta", tmp_path / "tune", "tune")
    convert_checkpoint(tmp_path / "tune", tmp_path / "hf", "hf")
    ids = AutoTokenizer.from_pretrained(tmp_path / "hf")("seven green apples", return_tensors="pt").input_ids
    reference.generation_config.eos_token_id = None
    with torch.no_grad():
        tokens = reference.generate(ids, max_new_tokens=200, do_sample=False, pad_token_id=0)[
            0, ids.shape[1] :
        ]
    words = [
        "prompt=seven green apples",
        "max_new_tokens=200",
        "ignore_eos=true",
        "temperature=0",
        "device=cpu",
    ]
    for layout in ("meta", "tune", "hf"):
        capsys.readouterr()
        told = [*words, f"model_checkpoint={tmp_path / layout}", "log_level=WARNING"]
        assert main(["run", "generate", *told]) == 0
        # A random model writes bytes that are no text: each tokenizer's file says what they look like.
        expected = tune.tokenizers.from_checkpoint(tmp_path / layout).decode(tokens.tolist())
        assert capsys.readouterr().out == expected + "\n", layout


# ---- Every family ------------------------------------------------------------------------------------------

# What a family's layout has no words for.
UNSPEAKABLE = {
    ("llama-wide-heads", "meta"): "cannot express head_dim 14",
    ("llama-biases", "meta"): r"no place for layers\.N\.attn\.q_proj\.bias",
    ("llama-linear-rope", "meta"): "cannot express rope_scaling LinearScaling",
    ("llama-yarn-rope", "meta"): "cannot express rope_scaling YarnScaling",
    ("llama-yarn-fractional", "meta"): "cannot express rope_scaling YarnScaling",
    ("llama-yarn-scales", "meta"): "cannot express rope_scaling YarnScaling",
    ("llama-dynamic-rope", "meta"): "cannot express rope_scaling DynamicScaling",
}


@pytest.mark.parametrize("case", CASES)
def test_every_family_goes_through_every_layout_it_has(case: str, tmp_path: Path) -> None:
    torch.manual_seed(2)
    reference = AutoModelForCausalLM.from_config(CASES[case]())
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
