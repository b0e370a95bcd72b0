"""Tokenizers beside a checkpoint: found, set up as its JSON files say, and written for other tools."""

from __future__ import annotations

import json
import shutil

import pytest
from trained_tokenizers import tiktoken_lines

from tune.errors import TokenizerError
from tune.tokenizers import (
    HFTokenizer,
    Message,
    SentencePieceTokenizer,
    TiktokenTokenizer,
    auto,
    from_checkpoint,
    write_hf_tokenizer_config,
)


@pytest.fixture
def folder(spm_file, tmp_path):
    shutil.copy(spm_file, tmp_path / "tokenizer.model")
    return tmp_path


def write(folder, name, **content):
    (folder / name).write_text(json.dumps(content))


def test_a_bare_file_is_enough(folder):
    for tokenizer in (
        from_checkpoint(folder),
        auto(checkpoint_dir=str(folder)),
        auto(path=str(folder)),
        auto(path=str(folder / "tokenizer.model"), checkpoint_dir="/elsewhere"),
    ):
        assert tokenizer.encode("seven")[0] == 1
        assert tokenizer.max_seq_len is None
        assert tokenizer.files() == [folder / "tokenizer.model"]


def test_settings_beside_it_are_honoured(folder):
    size = from_checkpoint(folder).vocab_size
    write(
        folder,
        "tokenizer_config.json",
        add_bos_token=False,
        eos_token={"content": "<|end|>"},
        model_max_length=1e30,
        added_tokens_decoder={"1": {"content": "<s>"}, str(size): {"content": "<|end|>"}},
    )
    write(folder, "generation_config.json", eos_token_id=[2, size])
    write(folder, "config.json", max_position_embeddings=48, vocab_size=size + 1)
    tokenizer = from_checkpoint(folder)
    assert tokenizer.eos_id == size
    assert tokenizer.stop_ids == (size, 2)
    assert tokenizer.encode("seven")[0] != 1
    assert tokenizer.max_seq_len == 48
    by_file = auto(path=str(folder / "tokenizer.model"))
    assert (by_file.eos_id, by_file.stop_ids, by_file.max_seq_len) == (size, (size, 2), 48)
    renamed = shutil.copy(folder / "tokenizer.model", folder / "other.model")
    assert from_checkpoint(renamed).eos_id == 2
    assert from_checkpoint(folder, max_seq_len=31).max_seq_len == 31
    assert [file.name for file in tokenizer.files()] == [
        "tokenizer.model",
        "tokenizer_config.json",
        "generation_config.json",
    ]


def test_tokens_that_the_model_has_no_row_for_are_left_out(folder):
    size = from_checkpoint(folder).vocab_size
    write(folder, "added_tokens.json", **{"<pad>": size})
    write(folder, "tokenizer_config.json", pad_token="<pad>")
    write(folder, "config.json", vocab_size=size)
    tokenizer = from_checkpoint(folder)
    assert tokenizer.vocab_size == size
    assert tokenizer.pad_id < size


def test_meta_keeps_it_one_folder_up(folder):
    model = folder / "7B"
    model.mkdir()
    write(model, "params.json", dim=64)
    assert from_checkpoint(model).path == folder / "tokenizer.model"


def test_a_saved_step_and_an_output_directory_hold_one(folder):
    step = folder / "out" / "step_000003"
    (step / "model").mkdir(parents=True)
    shutil.move(folder / "tokenizer.model", step / "model")
    (folder / "out" / "latest").symlink_to("step_000003")
    for place in (step / "model", step, folder / "out" / "latest", folder / "out"):
        assert from_checkpoint(place).path.samefile(step / "model" / "tokenizer.model")


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(TokenizerError, match="there is no file or directory"):
        from_checkpoint(tmp_path / "nowhere")
    with pytest.raises(TokenizerError, match=r"which holds nothing; set tokenizer\.path"):
        from_checkpoint(tmp_path)
    with pytest.raises(TokenizerError, match="File name too long"):
        from_checkpoint("n" * 5000)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json \(2 bytes\): it is JSON of another kind"):
        from_checkpoint(tmp_path)
    with pytest.raises(TokenizerError, match=r"set tokenizer\.path"):
        auto()


def test_each_kind_is_told_from_its_content(make_folder, spm_file, tmp_path):
    folder = make_folder("llama2")
    shutil.copy(spm_file, folder / "tokenizer.model")
    assert isinstance(from_checkpoint(folder), HFTokenizer)
    # A file that is named goes before those that are found.
    assert isinstance(from_checkpoint(folder / "tokenizer.model"), SentencePieceTokenizer)
    folder = make_folder("llama3")
    lines = tiktoken_lines(json.loads((folder / "tokenizer.json").read_text()))
    (folder / "tokenizer.model").write_bytes(lines)
    assert isinstance(from_checkpoint(folder / "tokenizer.model"), TiktokenTokenizer)
    (folder / "tokenizer.json").rename(folder / "mine.json")
    assert isinstance(from_checkpoint(folder), TiktokenTokenizer)
    alone = auto(path=str(folder / "mine.json"))
    assert isinstance(alone, HFTokenizer)
    assert alone.token(alone.eos_id) == "<|end_of_text|>"  # not what the settings beside it say
    (folder / "tokenizer.model").unlink()
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json or tokenizer\.model"):
        from_checkpoint(folder)


def test_a_saved_step_holds_any_kind(make_folder, tmp_path):
    step = tmp_path / "out" / "step_000003"
    step.mkdir(parents=True)
    shutil.move(make_folder("qwen"), step / "model")
    (tmp_path / "out" / "latest").symlink_to("step_000003")
    for place in (step / "model", step, tmp_path / "out" / "latest", tmp_path / "out"):
        assert from_checkpoint(place).path.samefile(step / "model" / "tokenizer.json")


def test_the_chat_template_comes_along(make_folder, folder):
    assert from_checkpoint(make_folder("qwen")).chat_template is None
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    tokenizer = from_checkpoint(make_folder("qwen", chat_template=template))
    assert tokenizer.chat_template is not None
    text = tokenizer.apply_chat_template([{"role": "user", "content": "walk"}], tokenize=False)
    assert text == "<|im_start|>user\nwalk<|im_end|>"
    tokens, mask = tokenizer.tokenize_messages(
        [Message("user", "walk", masked=True), Message("assistant", "seven")]
    )
    assert tokenizer.decode([t for t, masked in zip(tokens, mask, strict=True) if not masked]).endswith(
        "seven"
    )
    # What was chosen goes before it.
    plain = from_checkpoint(tokenizer.path.parent, prompt_template="plain")
    tokens, _ = plain.tokenize_messages([Message("user", "walk"), Message("assistant", "seven")])
    assert plain.decode(tokens) == "walkseven"
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    assert from_checkpoint(folder).chat_template is not None


def test_broken_settings_are_named(folder):
    (folder / "tokenizer_config.json").write_text("{,}")
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json.*line 1"):
        from_checkpoint(folder)
    (folder / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(TokenizerError, match="holds a list"):
        from_checkpoint(folder)
    for content in ("[" * 100_000, '{"a": ' + "9" * 5000 + "}"):
        (folder / "tokenizer_config.json").write_text(content)
        with pytest.raises(TokenizerError, match="cannot read"):
            from_checkpoint(folder)
    write(folder, "tokenizer_config.json", add_bos_token="no")
    with pytest.raises(TokenizerError, match="add_bos_token is 'no'"):
        from_checkpoint(folder)


@pytest.mark.parametrize("token_id", ["b", "²", None, True, -5, 3.5, 10**30, [2]])
def test_ids_that_are_none_are_named(folder, token_id):
    for name, content in (
        ("tokenizer_config.json", {"added_tokens_decoder": {str(token_id): {"content": "<a>"}}}),
        ("added_tokens.json", {"<a>": token_id}),
        ("generation_config.json", {"eos_token_id": [2, token_id]}),
    ):
        write(folder, name, **content)
        with pytest.raises(TokenizerError, match=rf"{name}: .* is no token id"):
            from_checkpoint(folder)
        (folder / name).unlink()


# transformers reads a bare tokenizer.model by other rules for each of these.
@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma", "phi3"])
def test_other_tools_load_what_is_written(folder, model_type):
    transformers = pytest.importorskip("transformers")
    write(folder, "config.json", model_type=model_type)
    tokenizer = from_checkpoint(folder, max_seq_len=77)
    written = write_hf_tokenizer_config(tokenizer, folder)
    names = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]
    assert [file.name for file in written] == names
    assert write_hf_tokenizer_config(tokenizer, folder) == []
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    assert reference.model_max_length == 77
    assert (reference.bos_token_id, reference.eos_token_id, reference.pad_token_id) == (
        1,
        2,
        tokenizer.pad_id,
    )
    for text in ("the answer of 12", "日本 😀\n\nZürich", "  the  question", "▁walk", "\n", ""):
        ids = tokenizer.encode(text, add_eos=False)
        assert reference.encode(text) == ids
        assert reference.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    again = from_checkpoint(folder)
    assert isinstance(again, SentencePieceTokenizer)
    assert again.encode("seven") == tokenizer.encode("seven")
