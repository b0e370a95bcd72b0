"""Meta's consolidated files: the same numbers, and back to Hugging Face bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import tune.models
from tune.checkpoints import load_into, open_weights, save_meta, save_model
from tune.errors import CheckpointError
from tune.models.llama2 import llama2
from tune.models.llama2.family import LLAMA
from tune.modules import TransformerDecoder

# A width of 48 in 6 heads of 8, with 2 key heads: every dimension of every matrix is another.
VOCAB, LAYERS, HEADS, KV_HEADS, WIDTH, HIDDEN = 61, 2, 6, 2, 48, 50


@pytest.fixture
def model() -> TransformerDecoder:
    torch.manual_seed(3)
    built = llama2(VOCAB, LAYERS, HEADS, WIDTH, 4096, num_kv_heads=KV_HEADS, intermediate_dim=HIDDEN)
    for parameter in built.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return built.eval()


def meta_forward(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Llama as Meta's files mean it, straight from the formulas: complex rotation of neighbouring channels."""

    def norm(x: Tensor, scale: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * scale

    def rotate(x: Tensor) -> Tensor:
        s, h_d = x.shape[1], x.shape[3]
        angles = torch.outer(torch.arange(s), 10_000.0 ** (-torch.arange(0, h_d, 2) / h_d))
        turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
        turned = turned * torch.polar(torch.ones_like(angles), angles)[None, :, None]
        return torch.view_as_real(turned).flatten(-2)

    b, s = tokens.shape
    x = weights["tok_embeddings.weight"][tokens]
    for layer in range(LAYERS):
        own = {
            name.removeprefix(f"layers.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"layers.{layer}.")
        }
        normed = norm(x, own["attention_norm.weight"])
        q, k, v = (
            (normed @ own[f"attention.{name}.weight"].T).view(b, s, -1, WIDTH // HEADS)
            for name in ("wq", "wk", "wv")
        )
        q, k = rotate(q), rotate(k)
        k, v = (each.repeat_interleave(HEADS // KV_HEADS, dim=2) for each in (k, v))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / (WIDTH // HEADS) ** 0.5
        scores = scores.masked_fill(torch.ones(s, s).triu(1).bool(), -torch.inf)
        mixed = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).reshape(b, s, WIDTH)
        x = x + mixed @ own["attention.wo.weight"].T
        normed = norm(x, own["ffn_norm.weight"])
        gate = F.silu(normed @ own["feed_forward.w1.weight"].T)
        x = x + (gate * (normed @ own["feed_forward.w3.weight"].T)) @ own["feed_forward.w2.weight"].T
    return norm(x, weights["norm.weight"]) @ weights["output.weight"].T


def test_the_written_file_means_the_same_to_metas_formulas(model: TransformerDecoder, tmp_path: Path) -> None:
    save_meta(model, tmp_path)
    weights = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    tokens = torch.randint(0, VOCAB, (3, 11))
    with torch.no_grad():
        torch.testing.assert_close(meta_forward(weights, tokens), model(tokens), rtol=1e-4, atol=2e-4)


def test_hugging_face_to_meta_and_back_is_bit_for_bit(model: TransformerDecoder, tmp_path: Path) -> None:
    save_model(model, tmp_path / "hf")
    save_meta(tune.models.from_checkpoint(tmp_path / "hf"), tmp_path / "meta")
    save_model(tune.models.from_checkpoint(tmp_path / "meta"), tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "hf" / "model.safetensors"
    ).read_bytes()
    assert (tmp_path / "again" / "config.json").read_text() == (tmp_path / "hf" / "config.json").read_text()
    save_meta(tune.models.from_checkpoint(tmp_path / "again"), tmp_path / "meta-again")
    first, second = (open_weights(tmp_path / name) for name in ("meta", "meta-again"))
    assert list(first) == list(second)
    assert all(torch.equal(first.read(name), second.read(name)) for name in first)


@pytest.mark.parametrize("rows_of_embedding", [False, True], ids=["llama2-cut", "llama3-cut"])
def test_several_parts_are_put_together(
    model: TransformerDecoder, tmp_path: Path, rows_of_embedding: bool
) -> None:
    save_meta(model, tmp_path / "whole")
    source = open_weights(tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "params.json").write_text((tmp_path / "whole" / "params.json").read_text())
    rows = ["wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight", "output.weight"]
    columns = ["wo.weight", "w2.weight"]
    (rows if rows_of_embedding else columns).append("tok_embeddings.weight")
    parts: list[dict[str, Tensor]] = [{}, {}]
    for name in source:
        dim = 0 if name.endswith(tuple(rows)) else 1 if name.endswith(tuple(columns)) else None
        whole = source.read(name)
        pieces = (whole, whole) if dim is None else whole.tensor_split(2, dim)
        for part, piece in zip(parts, pieces):
            part[name] = piece.clone()
    for number, part in enumerate(parts):
        part["rope.freqs"] = torch.zeros(4)
        torch.save(part, tmp_path / "cut" / f"consolidated.{number:02}.pth")
    loaded = tune.models.from_checkpoint(tmp_path / "cut")
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def test_torchtunes_own_files_are_read_in_their_order_of_channels(
    model: TransformerDecoder, tmp_path: Path
) -> None:
    save_meta(model, tmp_path)
    source = open_weights(tmp_path)
    names = dict(model.named_parameters())
    weights = {rule.ours: source.read(rule.theirs) for (rule,) in LLAMA.meta.expand(model.config, names)}
    torch.save({"model": weights}, tmp_path / "torchtune_model_0.pt")
    other = llama2(VOCAB, LAYERS, HEADS, WIDTH, 4096, num_kv_heads=KV_HEADS, intermediate_dim=HIDDEN)
    load_into(other, open_weights([tmp_path / "torchtune_model_0.pt"]))
    for name, parameter in model.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name


def test_missing_and_foreign_parts_are_named(model: TransformerDecoder, tmp_path: Path) -> None:
    save_meta(model, tmp_path)
    weights = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    torch.save(weights, tmp_path / "consolidated.02.pth")
    with pytest.raises(CheckpointError, match=r"\[0, 2\]"):
        open_weights(tmp_path)
    (tmp_path / "consolidated.02.pth").unlink()
    torch.save(weights | {"stray": torch.zeros(2)}, tmp_path / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match="only one of them holds stray"):
        open_weights(tmp_path)


def test_a_tied_model_is_written_whole_and_read_as_tied_again(tmp_path: Path) -> None:
    tied = llama2(VOCAB, LAYERS, HEADS, WIDTH, 64, intermediate_dim=HIDDEN, tie_word_embeddings=True)
    save_meta(tied, tmp_path)
    weights = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    assert torch.equal(weights["output.weight"], weights["tok_embeddings.weight"])
    untied = tune.models.from_checkpoint(tmp_path)
    tokens = torch.randint(0, VOCAB, (2, 5))
    torch.testing.assert_close(untied(tokens), tied.eval()(tokens))


@pytest.mark.parametrize(
    ("width", "hidden", "expected"),
    [
        (4096, 11_008, {"multiple_of": 256}),
        (8192, 28_672, {"multiple_of": 4096, "ffn_dim_multiplier": 1.3}),
        (48, 50, None),
        (4096, 14_336, {"multiple_of": 1024, "ffn_dim_multiplier": 1.3}),
        (2048, 8192, None),
        (3, 1, None),
    ],
)
def test_params_json_leads_metas_code_to_the_same_width(
    tmp_path: Path, width: int, hidden: int, expected: dict[str, float] | None
) -> None:
    from tune.modules import DecoderConfig

    config = DecoderConfig(7, 1, 1, 1, width, width + width % 2, hidden, 32)
    if config.head_dim != width:
        with pytest.raises(CheckpointError, match=r"params\.json cannot express"):
            LLAMA.write_meta_config(config)
        return
    params = json.loads(json.dumps(LLAMA.write_meta_config(config)))
    if expected is not None:
        assert expected.items() <= params.items()
    computed = int(2 * 4 * width / 3)
    computed = int(params.get("ffn_dim_multiplier", 1) * computed)
    multiple = params["multiple_of"]
    assert multiple * ((computed + multiple - 1) // multiple) == hidden


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_scaled_rope": True}, "use_scaled_rope"),
        ({"moe": {"num_experts": 8}}, "moe"),
        ({"dim": 48.5}, "dim"),
    ],
)
def test_params_that_are_not_understood_are_named(
    model: TransformerDecoder, tmp_path: Path, change: dict[str, object], named: str
) -> None:
    save_meta(model, tmp_path)
    params = json.loads((tmp_path / "params.json").read_text())
    (tmp_path / "params.json").write_text(json.dumps(params | change))
    with pytest.raises(CheckpointError, match=f"`{named}`"):
        tune.models.from_checkpoint(tmp_path)
