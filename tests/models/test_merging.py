"""An adapter merged into its base: the model that both are together, or an explained refusal and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tune.cli.main import main
from tune.errors import CheckpointError
from tune.models.merging import merge_adapter

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
