"""An adapter merged into its base: the model that both are together, or an explained refusal and nothing written."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import tune.models
from tune.checkpoints import load_adapter, load_into, open_weights, read_base_quantization, save_adapter
from tune.cli.main import main
from tune.errors import CheckpointError
from tune.models.merging import merge_adapter
from tune.modules.peft import LoRAConfig, adapter_parameters, apply_lora, quantize_nf4, reset_adapters

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
TOKENS = torch.randint(0, 61, (2, 17), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(4)
    directory = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(directory)
    return directory


def make_adapter(base: Path, directory: Path, *, size: float = 0.3, **settings: object) -> Path:
    """An adapter made by peft, with B drawn at this size."""
    torch.manual_seed(6)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "down_proj"], **settings),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=size) if size else parameter.zero_()
    model.save_pretrained(directory)
    return directory


@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"]
)
def test_the_merged_model_is_base_and_adapter_together(
    base: Path, tmp_path: Path, settings: dict[str, bool]
) -> None:
    adapter = make_adapter(base, tmp_path / "adapter", **settings)
    report = merge_adapter(adapter, base, tmp_path / "merged")
    assert (report.num_moved, report.num_matrices) == (4, 4)
    assert report.logits_off < 1e-5 < 0.05 < report.logits_moved
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(TOKENS).logits, theirs(TOKENS).logits, rtol=1e-4, atol=2e-5)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    "settings", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"]
)
@pytest.mark.parametrize(("stored", "written"), [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_an_exact_sum_is_rounded_once(
    base: Path, tmp_path: Path, settings: dict[str, bool], stored: str, written: str
) -> None:
    halved = tmp_path / "base"
    LlamaForCausalLM.from_pretrained(base, dtype=getattr(torch, stored)).save_pretrained(halved)
    adapter = make_adapter(base, tmp_path / "adapter", **settings)  # in fp32
    dtype = getattr(torch, written)
    merge_adapter(adapter, halved, tmp_path / "merged", dtype)
    ours = load_file(tmp_path / "merged/model.safetensors")
    before, added = load_file(halved / "model.safetensors"), load_file(adapter / "adapter_model.safetensors")
    scaling = 12 / (3**0.5 if "use_rslora" in settings else 3)
    num_off = num_elements = 0
    for name in (name for name in added if "lora_A" in name):
        a, b = added[name].double(), added[name.replace("lora_A", "lora_B")].double()
        path = name.removeprefix("base_model.model.").replace(".lora_A", "")
        exact = before[path].double() + scaling * b @ a
        if "use_dora" in settings:
            lengths = added[name.replace("lora_A.weight", "lora_magnitude_vector")].double()
            exact *= (lengths / exact.norm(dim=1))[:, None]
        assert ours[path].dtype == dtype
        num_off += int((ours[path] != exact.to(dtype)).sum())
        num_elements += exact.numel()
    assert num_elements == 2 * (48 * 48 + 48 * 50)
    # An element that lies between two bf16 numbers, to the precision of fp32, may fall to either side.
    assert num_off <= 2


def test_from_the_command_line_base_and_name_are_found(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_adapter(base, tmp_path / "poet")
    monkeypatch.chdir(tmp_path)
    assert main(["merge", "poet", "--dtype", "bf16"]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 with an adapter have moved" in out
    assert "no tokenizer was copied" in out
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "poet-merged")
    assert merged.dtype == torch.bfloat16
    assert main(["merge", "poet"]) == 1
    assert "is there already" in capsys.readouterr().err
    for words in (["merge"], ["merge", "poet", "other"], ["merge", "poet", "--dtype", "int8"]):
        assert main(words) == 2


def test_another_base_than_the_adapters_is_noted(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    other = tmp_path / "other"
    torch.manual_seed(14)
    LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(other)  # of the same shapes
    assert main(["merge", str(adapter), "--base", str(other), "--to", str(tmp_path / "one")]) == 0
    said = " ".join(capsys.readouterr().out.split())  # long lines are broken
    assert f"trained beside {base}; whether {other} is the same" in said
    load_adapter(tune.models.from_checkpoint(base), adapter, base=base)
    assert not caplog.records
    load_adapter(
        tune.models.from_checkpoint(other), adapter, base=other
    )  # to generate, or to train it further
    assert f"trained beside {base}; whether {other} is the same" in caplog.text
    config = adapter / "adapter_config.json"
    content = json.loads(config.read_text())
    named = [(str(base), base), ("someone/other", other), ("", other), ("a\0b", other), ("n" * 5000, other)]
    for number, (name, given) in enumerate(named):
        config.write_text(json.dumps(content | {"base_model_name_or_path": name}))
        notes = merge_adapter(adapter, given, tmp_path / str(number)).notes
        assert any("beside" in note for note in notes) == (number > 2)


def test_an_adapter_with_bad_numbers_is_refused_as_such(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "layers.1" in name and "lora_B" in name)
    tensors[name][3, 1] = float("nan")
    save_file(tensors, file)
    with pytest.raises(
        CheckpointError, match=rf"not finite, in 1 of 8 tensors, .*{name} \(\d+ of \d+\): the file is damaged"
    ):
        merge_adapter(adapter, base, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(base: Path, tmp_path: Path) -> None:
    to = tmp_path / "merged"
    still = make_adapter(base, tmp_path / "still", size=0.0)
    with pytest.raises(CheckpointError, match="changes none of the 4 matrices"):
        merge_adapter(still, base, to)
    adapter = make_adapter(base, tmp_path / "adapter")
    other = tmp_path / "other"
    LlamaForCausalLM(LlamaConfig(**{**SIZES, "intermediate_size": 52})).save_pretrained(other)
    with pytest.raises(CheckpointError, match="down_proj"):
        merge_adapter(adapter, other, to)
    with pytest.raises(CheckpointError, match="no adapter was found"):
        merge_adapter(base, base, to)
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace(str(base), "someone/their-model"))
    with pytest.raises(CheckpointError, match=r"someone/their-model, which is no folder here.*--base"):
        merge_adapter(adapter, None, to)
    assert not to.exists()
    assert not list(tmp_path.glob(".*"))


def make_beside_4_bits(base: Path, directory: Path, *, quantize_base: bool = True) -> Path:
    """An adapter as a run leaves it whose base was kept in 4 bits."""
    with torch.device("meta"):
        model = tune.models.auto(str(base))
        apply_lora(model, LoRAConfig(rank=3, alpha=12.0, apply_to_mlp=True, quantize_base=quantize_base))
    load_into(model, open_weights(base))
    reset_adapters(model, torch.float32)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    save_adapter(model, directory, base=str(base))
    return directory


def in_4_bits(model: PreTrainedModel) -> PreTrainedModel:
    """Their model, each matrix of its blocks what 4 bits make of it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.copy_(quantize_nf4(parameter.detach()).dequantize())
    return model


def test_how_far_a_merge_drifts_from_a_4_bit_base(base: Path, tmp_path: Path) -> None:
    adapter = make_beside_4_bits(base, tmp_path / "adapter")
    report = merge_adapter(adapter, base, tmp_path / "merged")
    assert report.drift is not None
    # What training saw, and the merged model, both as other tools have them.
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # what peft says of an adapter that does not fit
        saw = PeftModel.from_pretrained(in_4_bits(AutoModelForCausalLM.from_pretrained(base)), adapter).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    tokens = torch.randint(0, 61, (1, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, ours = saw(tokens).logits, merged(tokens).logits
    off = (theirs - ours).abs()
    assert report.drift.logits_max == pytest.approx(float(off.max()), rel=1e-3)
    assert report.drift.logits_mean == pytest.approx(float(off.mean()), rel=1e-3)
    assert off.mean() > 1e-3  # far above rounding
    num_same = int((theirs.argmax(-1) == ours.argmax(-1)).sum())
    assert (report.drift.num_same, report.drift.num_positions) == (num_same, 32)
    assert 0 < num_same <= 32


def test_the_drift_is_shown_where_the_adapter_speaks_of_4_bits(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quantized = make_beside_4_bits(base, tmp_path / "quantized")
    plain = make_beside_4_bits(base, tmp_path / "plain", quantize_base=False)
    foreign = make_adapter(base, tmp_path / "foreign")
    said = [read_base_quantization(folder) for folder in (quantized, plain, foreign)]
    assert said == ["nf4", "", ""]
    for folder, shown in ((quantized, True), (plain, False), (foreign, False)):
        assert main(["merge", str(folder), "--base", str(base), "--to", f"{folder}-merged"]) == 0
        out = capsys.readouterr().out
        assert ("trained beside a base in 4 bits (nf4)" in out) == shown
        assert "with an adapter have moved" in out
    # In something we do not know, nothing is claimed.
    file = quantized / "adapter_model.safetensors"
    save_file(load_file(file), file, {"format": "pt", "base_quantization": "hqq"})
    report = merge_adapter(quantized, base, tmp_path / "other")
    assert report.drift is None
    assert any("a base in hqq" in note for note in report.notes)


def start(before: Callable[[], object], adapter: Path, base: Path, to: Path) -> subprocess.Popen[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "tune", "merge", str(adapter), "--base", str(base), "--to", str(to)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=before)


def test_a_full_disk_and_ctrl_c_leave_nothing(tmp_path: Path) -> None:
    """A model large enough that there is a moment to interrupt it in."""
    base = tmp_path / "base"
    sizes = {**SIZES, "vocab_size": 9000, "hidden_size": 384, "intermediate_size": 700}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter")
    full = start(
        lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20)), adapter, base, tmp_path / "full"
    )
    assert "cannot be written" in full.communicate(timeout=600)[1]
    assert full.returncode == 1
    # A shell that starts it in the background has it ignore Ctrl-C.
    stopped = start(
        lambda: signal.signal(signal.SIGINT, signal.default_int_handler), adapter, base, tmp_path / "stopped"
    )
    while not list(tmp_path.glob("stopped/.converting/*")):
        assert stopped.poll() is None
        time.sleep(0.001)
    stopped.send_signal(signal.SIGINT)
    assert stopped.communicate(timeout=600)[1].strip() == "Interrupted."
    assert stopped.returncode == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_two_merges_do_not_meet_and_what_was_killed_is_cleared(base: Path, tmp_path: Path) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    staging = tmp_path / "merged" / ".converting"
    staging.mkdir(parents=True)
    (staging / "model.safetensors").write_bytes(b"half")
    other = os.open(staging, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(CheckpointError, match="another conversion is writing"):
        merge_adapter(adapter, base, tmp_path / "merged")
    assert (staging / "model.safetensors").read_bytes() == b"half"
    os.close(other)
    merge_adapter(adapter, base, tmp_path / "merged")
    assert not staging.exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["a" * 300], 1),
        (["ADAPTER", "--base", "b" * 300], 1),
        (["ADAPTER", "--to", "c" * 300], 1),
        (["ADAPTER", "--to", "/proc/nobody/there"], 1),
        (["ADAPTER", "--base", ""], 2),
        (["ADAPTER", "--to", " "], 2),
    ],
)
def test_names_that_cannot_be_are_errors_of_their_own(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int
) -> None:
    adapter = make_adapter(base, tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    assert main(["merge", *(str(adapter) if word == "ADAPTER" else word for word in words)]) == code
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_the_tokenizer_that_was_trained_with_goes_along(
    base: Path, chat_folder: object, tmp_path: Path
) -> None:
    """The chat template and the token that ends its turns are part of what was trained."""
    adapter = make_adapter(base, tmp_path / "adapter")
    tokenizer = chat_folder()  # type: ignore[operator]
    for file in tokenizer.iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}<|end|>")
    (adapter / "generation_config.json").write_text('{"eos_token_id": [1, 4]}')
    report = merge_adapter(adapter, base, tmp_path / "merged")
    assert not any("no tokenizer" in note for note in report.notes)
    assert (report.directory / "chat_template.jinja").read_text() == "{{ messages[0].content }}<|end|>"
    for name in ("generation_config.json", "config.json"):
        assert json.loads((report.directory / name).read_text())["eos_token_id"] == [1, 4]
