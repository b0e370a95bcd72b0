"""Embedding and output matrix in adapters of peft: trained whole, row by row, or resized; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import tune.models
from tune.checkpoints import load_adapter, save_adapter
from tune.errors import CheckpointError
from tune.models.merging import merge_adapter
from tune.modules.peft import adapted_modules, merge_adapters

NUM_ROWS = 61
BOTH = {"embed_tokens": [61, 62, 63], "lm_head": [61, 62, 63]}
KINDS: dict[str, tuple[int, dict[str, Any]]] = {  # rows that are added first, and what is trained
    "both whole": (0, {"modules_to_save": ["lm_head", "embed_tokens"]}),
    "embedding whole": (0, {"modules_to_save": ["embed_tokens"]}),
    "head whole": (0, {"modules_to_save": ["lm_head"]}),
    "tied whole": (0, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "rows": (0, {"trainable_token_indices": [5, 3]}),
    "new rows": (3, {"trainable_token_indices": BOTH}),
    "some new rows": (3, {"trainable_token_indices": [61, 63]}),
    "resized": (3, {}),
    "resized and whole": (3, {"modules_to_save": ["lm_head", "embed_tokens"]}),
}


def base_of(tmp_path: Path, tied: bool) -> Path:
    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=NUM_ROWS,
        hidden_size=48,
        intermediate_size=50,
        num_hidden_layers=1,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def resized(base: Path, num_added: int) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base)
    if num_added:
        model.resize_token_embeddings(NUM_ROWS + num_added)
    return model


def make_adapter(base: Path, folder: Path, num_added: int = 0, **settings: Any) -> PeftModel:
    """An adapter of peft with random numbers in all that is trained."""
    torch.manual_seed(6)
    config = LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj"], **settings)
    model = get_peft_model(resized(base, num_added), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_peft(tmp_path: Path, kind: str, tied: bool) -> None:
    num_added, settings = KINDS[kind]
    base, adapter, again = base_of(tmp_path, tied), tmp_path / "adapter", tmp_path / "again"
    theirs = make_adapter(base, adapter, num_added, **settings)
    tokens = torch.randint(0, NUM_ROWS + num_added, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = theirs(tokens).logits
        ours = tune.models.from_checkpoint(base)
        load_adapter(ours, adapter)
        assert ours.eval()(tokens).shape == (2, 17, NUM_ROWS + num_added)
        torch.testing.assert_close(ours(tokens), wanted, rtol=1e-4, atol=1e-5)
        save_adapter(ours, again, str(base))
        read = PeftModel.from_pretrained(resized(base, num_added), again)
        torch.testing.assert_close(read.eval()(tokens).logits, wanted, rtol=1e-4, atol=1e-5)
        merge_adapters(ours)
        torch.testing.assert_close(ours(tokens), wanted, rtol=1e-4, atol=1e-5)
        report = merge_adapter(again, base, tmp_path / "merged")
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(merged.eval()(tokens).logits, wanted, rtol=1e-4, atol=1e-5)
    assert report.logits_off < 1e-5


def test_an_adapter_of_trained_rows_alone_moves_no_matrix(tmp_path: Path) -> None:
    base = base_of(tmp_path, tied=False)
    make_adapter(base, tmp_path / "adapter", modules_to_save=["lm_head"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: t * 0 if "lora_B" in name else t for name, t in load_file(file).items()}, file)
    report = merge_adapter(tmp_path / "adapter", base, tmp_path / "merged")
    assert report.num_moved == 0
    assert report.logits_moved > 0.05


def edit(folder: Path, change: Any, **settings: Any) -> None:
    file, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    config.write_text(json.dumps(json.loads(config.read_text()) | settings))


HEAD = "base_model.model.lm_head.weight"
ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@pytest.mark.parametrize(
    ("settings", "change", "edits", "said"),
    [
        ({"modules_to_save": ["lm_head"]}, lambda t: t.pop(HEAD), {}, "names it, and it has no weights"),
        (
            {"modules_to_save": ["lm_head"]},
            lambda t: t.update({HEAD: t[HEAD][:-1].clone()}),
            {},
            "60 rows in the file, fewer than the 61",
        ),
        (
            {"modules_to_save": ["lm_head"]},
            lambda t: t.update({HEAD: t[HEAD][:, 1:].clone()}),
            {},
            r"\[61, 47\] in the file, where rows of 48",
        ),
        (
            {"modules_to_save": ["lm_head"]},
            lambda t: t[HEAD].fill_(float("nan")),
            {},
            "not finite, in base_model.model.lm_head.weight",
        ),
        (
            {"trainable_token_indices": [5, 3]},
            lambda t: None,
            {"trainable_token_indices": [5]},
            "2 rows in the file, and `trainable_token_indices` names 1",
        ),
        (
            {"trainable_token_indices": [5, 3]},
            lambda t: None,
            {"trainable_token_indices": [5, 5]},
            "names a token twice",
        ),
        (
            {"trainable_token_indices": [5, 3]},
            lambda t: None,
            {"trainable_token_indices": None},
            "does not say of which tokens",
        ),
        ({"trainable_token_indices": [5, 3]}, lambda t: t.pop(ROWS), {}, "names it, and it has no rows"),
        (
            {"trainable_token_indices": [5, 3]},
            lambda t: None,
            {"trainable_token_indices": {"q_proj": [5, 3]}},
            "names 'q_proj', which is neither",
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, settings: dict[str, Any], change: Any, edits: dict[str, Any], said: str
) -> None:
    base = base_of(tmp_path, tied=False)
    make_adapter(base, tmp_path / "adapter", **settings)
    edit(tmp_path / "adapter", change, **edits)
    model = tune.models.from_checkpoint(base)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    with pytest.raises(CheckpointError, match=said):
        load_adapter(model, tmp_path / "adapter")
    if not adapted_modules(model):
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())


def test_an_untied_adapter_is_not_trained_beside_a_tied_base(tmp_path: Path) -> None:
    from tune.checkpoints import add_adapters

    base = base_of(tmp_path, tied=True)
    make_adapter(base, tmp_path / "adapter", modules_to_save=["embed_tokens"])
    with torch.device("meta"):
        model = tune.models.auto(str(base))
    with pytest.raises(CheckpointError, match="cannot be trained further beside this base"):
        add_adapters(model, {}, tmp_path / "adapter", torch.float32)
