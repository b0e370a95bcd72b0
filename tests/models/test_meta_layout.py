"""Meta's consolidated files: the same numbers, and back to Hugging Face bit for bit."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import tune.models
from tune.checkpoints import load_into, open_weights, save_meta, save_model
from tune.errors import CheckpointError
from tune.models.llama2 import LLAMA, llama2
from tune.modules import DecoderConfig, LinearScaling, TransformerDecoder

# A width of 48 in 6 heads of 8, with 2 key heads: every dimension of every matrix is another.
VOCAB, LAYERS, HEADS, KV_HEADS, WIDTH, HIDDEN = 61, 2, 6, 2, 48, 50


@pytest.fixture
def model() -> TransformerDecoder:
    torch.manual_seed(3)
    built = llama2(VOCAB, LAYERS, HEADS, WIDTH, 4096, num_kv_heads=KV_HEADS, intermediate_dim=HIDDEN)
    for parameter in built.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return built.eval()


def meta_scaling(frequencies: Tensor, factor: float) -> Tensor:
    """Llama 3.1's scaled frequencies, one by one."""
    scaled = []
    for frequency in frequencies.tolist():
        wavelength = 2 * math.pi / frequency
        if wavelength < 8192 / 4:
            scaled.append(frequency)
        elif wavelength > 8192:
            scaled.append(frequency / factor)
        else:
            share = (8192 / wavelength - 1) / (4 - 1)
            scaled.append((1 - share) * frequency / factor + share * frequency)
    return torch.tensor(scaled)


def meta_forward(
    weights: dict[str, Tensor],
    tokens: Tensor,
    base: float = 10_000.0,
    factor: float | None = None,
    start: int = 0,
) -> Tensor:
    """Llama as Meta's files mean it, straight from the formulas: complex rotation of neighbouring channels."""

    def norm(x: Tensor, scale: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * scale

    def rotate(x: Tensor) -> Tensor:
        s, h_d = x.shape[1], x.shape[3]
        frequencies = base ** (-torch.arange(0, h_d, 2) / h_d)
        if factor is not None:
            frequencies = meta_scaling(frequencies, factor)
        angles = torch.outer(torch.arange(start, start + s), frequencies)
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


# Every kind that has such files: name -> builder's arguments beside the sizes, and what params.json then says.
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "llama2": ({"max_seq_len": 4096}, {}),
    "llama2_tied": ({"max_seq_len": 4096, "tie_word_embeddings": True}, {"tie_word_embeddings": True}),
    "llama3": ({"max_seq_len": 8192}, {"rope_theta": 500_000.0}),
    "llama3_1": (
        {"max_seq_len": 131_072},
        # This narrow, only Llama 3.2 has scaled positions.
        {"use_scaled_rope": True, "rope_scaling_factor": 8.0, "tie_word_embeddings": False},
    ),
    "llama3_2": ({"max_seq_len": 131_072}, {"use_scaled_rope": True}),
    "llama3_2_other": (
        {"max_seq_len": 77, "scale_factor": 5.0},
        {"use_scaled_rope": True, "rope_scaling_factor": 5.0, "max_seq_len": 77},
    ),
    "mistral": ({"max_seq_len": 32_768, "sliding_window": 7}, {"sliding_window": 7, "hidden_dim": HIDDEN}),
    "mistral_tied": ({"max_seq_len": 32_768, "tie_word_embeddings": True}, {"tied_embeddings": True}),
    "mistral_nemo": (
        {"max_seq_len": 50, "head_dim": 10, "rope_base": 1e6},
        {"head_dim": 10, "max_seq_len": 50},
    ),
}
USUAL = {"rope_scaling_factor", "tie_word_embeddings", "max_seq_len", "sliding_window"}


def build(kind: str) -> TransformerDecoder:
    torch.manual_seed(4)
    name = kind.removesuffix("_tied").removesuffix("_other").removesuffix("_nemo")
    sizes = {"vocab_size": VOCAB, "num_layers": LAYERS, "num_heads": HEADS, "embed_dim": WIDTH}
    sizes |= {"num_kv_heads": KV_HEADS, "intermediate_dim": HIDDEN}
    built = tune.models.get_model(name, **sizes, **KINDS[kind][0])
    for parameter in built.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return built.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_to_meta_and_back_bit_for_bit(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    save_model(model, tmp_path / "hf")
    save_meta(tune.models.from_checkpoint(tmp_path / "hf"), tmp_path / "meta")
    params = json.loads((tmp_path / "meta" / "params.json").read_text())
    assert KINDS[kind][1].items() <= params.items()
    assert not USUAL & (set(params) - set(KINDS[kind][1]))
    from_meta = tune.models.from_checkpoint(tmp_path / "meta")
    assert from_meta.config == model.config
    save_model(from_meta, tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes()
    save_meta(tune.models.from_checkpoint(tmp_path / "again"), tmp_path / "meta-again")
    first, second = (open_weights(tmp_path / name) for name in ("meta", "meta-again"))
    assert list(first) == list(second)
    assert all(torch.equal(first.read(name), second.read(name)) for name in first)
    tokens = torch.randint(0, VOCAB, (3, 23))
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "again", attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(from_meta(tokens), model(tokens))
        torch.testing.assert_close(from_meta(tokens), reference(tokens).logits, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize(("kind", "factor"), [("llama3_1", 8.0), ("llama3_2", 32.0), ("llama3", None)])
def test_scaled_positions_mean_what_metas_formulas_say(
    kind: str, factor: float | None, tmp_path: Path
) -> None:
    model = build(kind)
    save_meta(model, tmp_path)
    weights = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    tokens = torch.randint(0, VOCAB, (2, 11))
    far = torch.arange(7000, 7011)[None]
    with torch.no_grad():
        theirs = meta_forward(weights, tokens, 500_000.0, factor, start=7000)
        # fp32 angles of thousands of radians
        torch.testing.assert_close(model(tokens, input_pos=far), theirs, rtol=1e-3, atol=1e-2)


LLAMA_PARAMS = {
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "multiple_of": 256,
}
MISTRAL_PARAMS = {
    "dim": 4096,
    "n_layers": 32,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-05,
}
NEMO_PARAMS = {"dim": 5120, "n_layers": 40, "rope_theta": 1000000.0, "vocab_size": 131072}


@pytest.mark.parametrize(
    ("name", "params"),
    [
        # Llama 3.2 is told from 3.1 by its width.
        ("llama3_2_1b", LLAMA_PARAMS | {"dim": 2048, "n_layers": 16, "use_scaled_rope": True}),
        ("llama3_1_8b", LLAMA_PARAMS | {"dim": 4096, "n_layers": 32, "use_scaled_rope": True}),
        ("llama3_8b", LLAMA_PARAMS | {"dim": 4096, "n_layers": 32}),
        ("mistral_7b", MISTRAL_PARAMS | {"sliding_window": 4096, "vocab_size": 32000}),
        ("mistral_7b_v0_3", MISTRAL_PARAMS | {"rope_theta": 1000000.0, "vocab_size": 32768}),
        ("mistral_7b_v0_3", MISTRAL_PARAMS | {"vocab_size": 32768}),  # without windows: the larger base
        ("mistral_nemo_12b", MISTRAL_PARAMS | NEMO_PARAMS),
    ],
)
def test_published_params_json_means_the_published_model(name: str, params: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = tune.models.get_model(name)
    embedding = (params["vocab_size"], params["dim"])
    shapes = {"tok_embeddings.weight": embedding, "output.weight": embedding}
    shapes["layers.0.feed_forward.w1.weight"] = (model.config.intermediate_dim, params["dim"])
    assert model.family.read_meta_config(params, shapes) == model.config


@pytest.mark.parametrize("in_parts", [False, True])
def test_mistrals_own_safetensors_are_read(in_parts: bool, tmp_path: Path) -> None:
    model = build("mistral")
    save_meta(model, tmp_path)
    weights = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    (tmp_path / "consolidated.00.pth").unlink()
    names = list(weights)
    parts = {"consolidated.safetensors": names}
    if in_parts:
        parts = {f"consolidated-0000{n}-of-00002.safetensors": names[n - 1 :: 2] for n in (1, 2)}
        index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
        (tmp_path / "consolidated.safetensors.index.json").write_text(json.dumps(index))
    for file, held in parts.items():
        save_file({name: weights[name] for name in held}, tmp_path / file)
    loaded = tune.models.from_checkpoint(tmp_path)
    assert loaded.config == model.config
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"qk_norm": "head"}, "attn.q_norm.scale"),
        ({"attn_bias": "all", "mlp_bias": True}, "mlp.w3.bias"),
        ({"logit_divisor": 2.0, "norm_offset": 1.0}, "norm_offset 1.0, logit_divisor 2.0"),
        ({"head_dim": 10}, "head_dim 10"),
        ({"rope_scaling": LinearScaling(2.0)}, "rope_scaling LinearScaling"),
        ({"nope_layers": (1,)}, "nope_layers"),
    ],
)
def test_what_params_json_cannot_say_is_not_written(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    model = TransformerDecoder(replace(build("llama2").config, **change), LLAMA)
    with pytest.raises(CheckpointError, match=re.escape(named)):
        save_meta(model, tmp_path / "meta")
    assert not list(tmp_path.glob("meta/*"))


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3"])
def test_torchtunes_files_of_other_families(kind: str, tmp_path: Path) -> None:
    sizes = {"vocab_size": VOCAB, "num_layers": LAYERS, "num_heads": HEADS, "embed_dim": WIDTH}
    sizes |= {"num_kv_heads": KV_HEADS, "intermediate_dim": HIDDEN, "max_seq_len": 40}
    model = tune.models.get_model(kind, **sizes)
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}
    weights = {}
    for name, parameter in model.named_parameters():
        weights[name] = parameter.detach()
        layer = name.split(".")[-2]
        if (
            kind == "mistral" and layer in heads
        ):  # neighbours: channel i stands at 2i, and i + h_d / 2 at 2i + 1
            split = parameter.detach().view(heads[layer], 2, -1, WIDTH)
            weights[name] = torch.stack((split[:, 0], split[:, 1]), 2).reshape(parameter.shape).clone()
    torch.save({"model": weights}, tmp_path / "torchtune_model_0.pt")
    other = tune.models.get_model(kind, **sizes)
    load_into(other, open_weights([tmp_path / "torchtune_model_0.pt"]))
    for name, parameter in model.named_parameters():
        assert torch.equal(other.get_parameter(name), parameter), name


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


def test_files_of_torchtune_are_read_in_their_channel_order(
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
    tied = build("llama3_2")
    save_meta(tied, tmp_path)
    weights = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    assert torch.equal(weights["output.weight"], weights["tok_embeddings.weight"])
    assert tune.models.from_checkpoint(tmp_path).output is None
    torch.save({**weights, "output.weight": weights["output.weight"] + 1}, tmp_path / "consolidated.00.pth")
    with pytest.raises(CheckpointError, match="set tie_word_embeddings to false"):
        tune.models.from_checkpoint(tmp_path)
    del weights["output.weight"]
    torch.save(weights, tmp_path / "consolidated.00.pth")
    assert tune.models.from_checkpoint(tmp_path).output is None


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
        ({"use_scaled_rope": "yes"}, "use_scaled_rope"),
        ({"quantization_args": {"scheme": "int4"}}, "quantization_args"),
        ({"rope_scaling_factor": 4.0}, "rope_scaling_factor"),
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
