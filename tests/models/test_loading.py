"""The model that a directory describes, and why some are refused."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tune.models
from tune.checkpoints import save_model
from tune.errors import CheckpointError, ConfigError, TrainingError
from tune.models.hf_fields import HARMLESS_FIELDS
from tune.models.llama2 import LLAMA, llama2
from tune.models.loading import read_model_config
from tune.modules import TransformerDecoder


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_model(llama2(29, 2, 4, 24, 33, num_kv_heads=2, intermediate_dim=20), tmp_path / "model")
    return tmp_path / "model"


def change_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if value != "(absent)"}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"rope_type": "twisted", "factor": 8.0}}, '`rope_type` is "twisted"'),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0, "offset": 1}},
            "`offset` is 1, and this field is not",
        ),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "`low_freq_factor` is missing"),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "yarn"}}, "`factor` is missing"),
        ({"rope_scaling": {"type": "linear", "factor": -2.0}}, "rope_scaling.factor is -2.0"),
        ({"attention_bias": True}, "layers.{0-1}.self_attn.q_proj.bias"),
        ({"mlp_bias": True}, "layers.{0-1}.mlp.up_proj.bias"),
        ({"sliding_window": 4096}, "`sliding_window` is 4096"),
        ({"hidden_act": "gelu"}, '`hidden_act` is "gelu"'),
        ({"quantization_config": {"quant_method": "gptq"}}, "the weights are quantised (gptq)"),
        ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is 0.5"),
        ({"qk_norm": False}, "`qk_norm` is false, and this field is not known"),
        ({"architectures": ["BloomForCausalLM"]}, "BloomForCausalLM"),
        ({"architectures": ["MixtralForCausalLM"]}, "`attention_bias` is false, and this field is not known"),
        ({"architectures": "(absent)", "model_type": "gpt2"}, "'gpt2'"),
        ({"hidden_size": "24"}, '`hidden_size` is "24"; it must be a whole number'),
        ({"hidden_size": "(absent)"}, "`hidden_size` is missing"),
        ({"num_hidden_layers": True}, "`num_hidden_layers` is true"),
        ({"num_hidden_layers": 10**9}, "more than 1000 are not built"),
        ({"num_attention_heads": 0}, "num_heads is 0"),
        ({"num_attention_heads": 5, "head_dim": "(absent)"}, "not a multiple of `num_attention_heads` 5"),
        ({"vocab_size": 10**18}, "one of them must be wrong"),
        ({"num_key_value_heads": 3}, "num_heads is 4, not a multiple of num_kv_heads 3"),
        ({"rms_norm_eps": "tiny"}, "`rms_norm_eps`"),
        ({"rope_theta": 10**400}, "`rope_theta`"),
        ({"rms_norm_eps": float("nan")}, "`rms_norm_eps` is NaN"),
        ({"tie_word_embeddings": 1}, "`tie_word_embeddings`"),
        ({"rope_scaling": "double"}, '`rope_scaling` is "double"; it must be an object'),
    ],
)
def test_a_field_that_is_not_understood_is_named(
    directory: Path, changes: dict[str, Any], named: str
) -> None:
    change_config(directory, **changes)
    with pytest.raises(CheckpointError) as caught:
        tune.models.from_checkpoint(directory)
    assert named in str(caught.value)
    assert str(directory) in str(caught.value)


def test_all_fields_that_are_not_understood_are_named_at_once(directory: Path) -> None:
    change_config(directory, mlp_bias="yes", hidden_act="relu", window=3, vocab_size=None)
    with pytest.raises(CheckpointError) as caught:
        tune.models.auto(str(directory))
    assert all(
        f"`{name}`" in str(caught.value) for name in ("mlp_bias", "hidden_act", "window", "vocab_size")
    )


def test_harmless_and_null_fields_pass(directory: Path) -> None:
    harmless = {name: 7 for name in HARMLESS_FIELDS if name not in ("architectures", "model_type")}
    change_config(directory, **harmless, something_new=None)
    tune.models.from_checkpoint(directory)


def test_old_and_new_places_of_the_rotary_base_mean_the_same(directory: Path) -> None:
    change_config(directory, rope_theta=123.0)
    older = tune.models.auto(str(directory))
    change_config(
        directory, rope_theta="(absent)", rope_parameters={"rope_theta": 123.0, "rope_type": "default"}
    )
    assert older.config == tune.models.auto(str(directory)).config
    assert older.config.rope_base == 123.0


def test_the_model_type_is_enough(directory: Path) -> None:
    change_config(directory, architectures="(absent)")
    tune.models.from_checkpoint(directory)


FIELDS = sorted(json.loads(json.dumps(LLAMA.write_hf_config(llama2(5, 1, 1, 2, 3).config))))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["rope_type", "x"]), inner),
    max_leaves=4,
)


@settings(max_examples=300)
@example(changes={"architectures": [""]})
@given(
    changes=st.dictionaries(
        st.sampled_from([*FIELDS, "rope_parameters", "architectures", "model_type"]), VALUES
    )
)
def test_any_value_gives_sizes_or_a_checkpoint_error(tmp_path: Path, changes: dict[str, Any]) -> None:
    content = {"model_type": "llama", **LLAMA.write_hf_config(llama2(5, 1, 1, 2, 3).config), **changes}
    (tmp_path / "config.json").write_text(json.dumps(content))
    try:
        _, config = read_model_config(tmp_path)
    except CheckpointError:
        return
    with torch.device("meta"):
        TransformerDecoder(replace(config, num_layers=1), LLAMA)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{", "not valid JSON"),
        (b"", "not valid JSON"),
        (b"[1]", "holds a list"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"vocab_size": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_broken_config_is_explained(directory: Path, content: bytes, said: str) -> None:
    (directory / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=said):
        tune.models.from_checkpoint(directory)


def test_directories_without_a_model_are_explained(directory: Path, tmp_path: Path) -> None:
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither config\.json"):
        tune.models.from_checkpoint(directory)
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=str(path)):
            tune.models.from_checkpoint(path)
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match="`hidden_size` is missing"):
        tune.models.from_checkpoint(tmp_path / "empty")


def test_a_config_without_weights_is_explained(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    assert tune.models.auto(str(directory)).config.vocab_size == 29
    with pytest.raises(CheckpointError, match="no weights were found"):
        tune.models.from_checkpoint(directory)


def test_auto_needs_a_checkpoint() -> None:
    with pytest.raises(CheckpointError, match="checkpoint_dir"):
        tune.models.auto()


def test_from_checkpoint_is_ready_to_be_called(directory: Path) -> None:
    model = tune.models.from_checkpoint(directory, dtype=torch.bfloat16)
    assert not model.training
    assert model(torch.randint(0, 29, (3, 5))).shape == (3, 5, 29)
    assert all(not parameter.is_meta and parameter.requires_grad for parameter in model.parameters())


def test_dtypes_and_devices_go_by_their_names_in_configs(directory: Path) -> None:
    model = tune.models.from_checkpoint(directory, dtype="bf16", device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    with pytest.raises(TrainingError, match="bf61"):
        tune.models.from_checkpoint(directory, dtype="bf61")
    with pytest.raises(TrainingError, match="gpu9"):
        tune.models.from_checkpoint(directory, device="gpu9")


def test_the_loaded_model_does_not_depend_on_the_file(directory: Path) -> None:
    model = tune.models.from_checkpoint(directory)
    before = model.tok_embeddings.weight.detach().clone()
    file = directory / "model.safetensors"
    with file.open("r+b") as handle:
        handle.seek(-4000, 2)
        handle.write(b"\x7f" * 4000)
    assert torch.equal(model.tok_embeddings.weight, before)
    assert torch.isfinite(torch.cat([parameter.flatten() for parameter in model.parameters()])).all()


def test_getters_build_by_short_name() -> None:
    model = tune.models.get_model(
        "llama2", vocab_size=11, num_layers=1, num_heads=2, embed_dim=8, max_seq_len=5
    )
    assert model.config.vocab_size == 11
    with pytest.raises(ConfigError, match="llama2"):
        tune.models.get_model("lama2")
    with pytest.raises(ConfigError, match="num_layer"):
        tune.models.get_model("llama2", num_layer=3)
    with pytest.raises(ConfigError, match="tokenizer"):
        tune.models.get_tokenizer("nonesuch")


def test_building_on_the_meta_device_draws_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    # There it would import torch's compiler: a second, at each start of a program that loads a checkpoint.
    monkeypatch.setattr(
        torch.Tensor, "normal_", lambda *_: pytest.fail("numbers were drawn for a model without values")
    )
    with torch.device("meta"):
        model = tune.models.get_model(
            "llama2", vocab_size=11, num_layers=1, num_heads=2, embed_dim=8, max_seq_len=5
        )
    monkeypatch.undo()
    model.to_empty(device="cpu").reset_parameters()
    assert 0.01 < model.tok_embeddings.weight.std() < 0.04


@pytest.mark.parametrize("locked", [".", "config.json", "model.safetensors"])
def test_what_may_not_be_read_is_said(directory: Path, locked: str) -> None:
    tune.models.from_checkpoint(directory)  # whatever is imported late is imported now
    user = os.geteuid()
    # pytest's own folders are closed to every other user.
    with tempfile.TemporaryDirectory() as place:
        path = Path(shutil.copytree(directory, Path(place, "model")), locked)
        Path(place).chmod(0o755)
        path.chmod(0)
        try:
            if user == 0:  # whom nothing stops
                os.seteuid(65534)
            with pytest.raises(CheckpointError, match=rf"{path.name} cannot be read: Permission denied"):
                tune.models.from_checkpoint(Path(place, "model"))
        finally:
            os.seteuid(user)
            path.chmod(0o700)
