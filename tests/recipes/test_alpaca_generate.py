from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tune.checkpoints import open_weights, save_meta, save_model
from tune.data import AlpacaToMessages
from tune.errors import CheckpointError
from tune.generation import generate_text
from tune.models.llama2 import llama2
from tune.recipes.alpaca_generate import build_from_shapes, recipe_main
from tune.tokenizers import SentencePieceTokenizer

HEADS, MAX_SEQ_LEN = 3, 4096


@pytest.fixture(scope="module")
def tokenizer(spm_file: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(spm_file)


@pytest.fixture(scope="module")
def model(tokenizer: SentencePieceTokenizer) -> Any:
    torch.manual_seed(8)
    model = llama2(
        vocab_size=tokenizer.vocab_size,
        num_layers=2,
        num_heads=HEADS,
        num_kv_heads=1,
        embed_dim=30,
        max_seq_len=MAX_SEQ_LEN,
        intermediate_dim=44,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope="module")
def places(
    model: Any, tokenizer: SentencePieceTokenizer, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same weights in every form that was ever current."""
    folder = tmp_path_factory.mktemp("weights")
    save_model(model, folder / "hf", tokenizer=tokenizer)
    save_meta(model, folder / "meta", tokenizer=tokenizer)
    meta = torch.load(folder / "meta" / "consolidated.00.pth", weights_only=True)
    # torchtune's own files had Meta's values, pairs of channels included, under our names.
    names = dict(model.named_parameters())
    rules = [rule for (rule,) in model.family.meta.expand(model.config, names)]
    native = {rule.ours: meta[rule.theirs] for rule in rules}
    alone = folder / "alone"
    alone.mkdir()
    torch.save(meta, alone / "meta.pth")
    torch.save(native, alone / "native.pth")
    torch.save({"model": native, "epochs_run": torch.tensor(3)}, alone / "nested.pt")
    hf = {name: open_weights(folder / "hf").read(name).clone() for name in open_weights(folder / "hf")}
    torch.save(hf, alone / "pytorch_model.bin")
    save_file(hf, alone / "model.safetensors")
    return {
        "HF folder": folder / "hf",
        "Meta folder": folder / "meta",
        "Meta file in its folder": folder / "meta" / "consolidated.00.pth",
        "HF file in its folder": folder / "hf" / "model.safetensors",
        **{path.name: path for path in sorted(alone.iterdir())},
    }


def ask(place: Path, tokenizer: SentencePieceTokenizer, *words: str) -> int:
    paths = ["--native-checkpoint-path", str(place), "--tokenizer-path", str(tokenizer.path)]
    return recipe_main([*paths, "--device", "cpu", "--max-gen-len", "12", *words])


def expected(model: Any, tokenizer: SentencePieceTokenizer, instruction: str, input_: str) -> str:
    row = {"instruction": instruction, "input": input_, "output": "x"}
    prompt = AlpacaToMessages()(row)["messages"][0].content
    return generate_text(model, tokenizer, prompt, max_new_tokens=12) + "\n"


def test_the_answer_is_the_same_from_every_form_of_the_weights(
    model: Any, tokenizer: SentencePieceTokenizer, places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(places) == 9
    wanted = expected(model, tokenizer, "write it", "")
    for name, place in places.items():
        assert ask(place, tokenizer, "--input", "write it", "--num-heads", str(HEADS)) == 0, name
        assert capsys.readouterr().out == wanted, name


def test_instruction_and_input(
    model: Any, tokenizer: SentencePieceTokenizer, places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ask(places["HF folder"], tokenizer, "--instruction", "respond", "--input", "a text")
    assert capsys.readouterr().out == expected(model, tokenizer, "respond", "a text")
    ask(places["HF folder"], tokenizer, "--instruction", "respond")
    assert capsys.readouterr().out == expected(model, tokenizer, "respond", "")
    with pytest.raises(SystemExit, match="2"):
        ask(places["HF folder"], tokenizer)
    assert "nothing to answer" in capsys.readouterr().err


def test_heads_are_never_guessed(
    tokenizer: SentencePieceTokenizer, places: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(places["meta.pth"], tokenizer, "--input", "a") == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "Give --num-heads" in err
    assert ask(places["meta.pth"], tokenizer, "--input", "a", "--num-heads", "4") == 2
    assert "num_heads" in capsys.readouterr().err


def test_a_published_size_is_recognised_from_its_shapes() -> None:
    class Shapes:
        path = Path("consolidated.00.pth")
        shapes = {  # noqa: RUF012
            "tok_embeddings.weight": (32_000, 8192),
            **{f"layers.{i}.attention.wq.weight": (8192, 8192) for i in range(80)},
            "layers.0.attention.wk.weight": (1024, 8192),
            "layers.0.feed_forward.w1.weight": (28_672, 8192),
        }

    with torch.device("meta"):
        config = build_from_shapes(Shapes(), None).config  # type: ignore[arg-type]
    assert (config.num_layers, config.num_heads, config.num_kv_heads, config.head_dim) == (80, 64, 8, 128)
    Shapes.shapes = {"wte.weight": (5, 7)}
    with torch.device("meta"), pytest.raises(CheckpointError, match="no Llama 2 weights"):
        build_from_shapes(Shapes(), None)  # type: ignore[arg-type]


def test_what_is_missing_is_said(
    tokenizer: SentencePieceTokenizer,
    places: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ask(tmp_path / "nowhere", tokenizer, "--input", "a") == 1
    assert "there is no file or folder" in capsys.readouterr().err
    weights = torch.load(places["meta.pth"], weights_only=True)
    del weights["layers.1.attention.wo.weight"]
    torch.save(weights, tmp_path / "cut.pth")
    assert ask(tmp_path / "cut.pth", tokenizer, "--input", "a", "--num-heads", str(HEADS)) == 1
    assert "layers.1.attention.wo.weight" in capsys.readouterr().err
