"""HFTokenizer: the ids and texts of transformers' AutoTokenizer, and nothing special from text."""

from __future__ import annotations

import json
import pickle

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_tokenizers import HARD_TEXTS, KINDS, NAMES, SPECIAL

from tune.errors import TokenizerError
from tune.tokenizers import HFTokenizer, StreamDecoder, Tokenizer, from_checkpoint

any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
tricky_text = st.text(st.sampled_from(" \n\tab1.▁é\u0301日😀\u200d\ufffd<s>|'"), max_size=30)


@pytest.fixture(params=KINDS)
def pair(request, make_folder):
    """A tokenizer of ours and the reference's, of one kind."""
    folder = make_folder(request.param)
    ours = from_checkpoint(folder)
    assert isinstance(ours, HFTokenizer)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


def test_satisfies_the_protocol(pair):
    ours, reference = pair
    assert isinstance(ours, Tokenizer)
    assert ours.vocab_size == len(reference)
    assert ours.eos_id == reference.eos_token_id
    assert ours.stop_ids == (ours.eos_id,)
    assert 0 <= ours.pad_id < ours.vocab_size
    expected = dict(reference.special_tokens_map)
    assert ours.special_token_names == expected


def test_ids_and_texts_are_those_of_the_reference(pair):
    ours, reference = pair
    for text in HARD_TEXTS:
        # "split" leaves special tokens in the text alone, the default finds them.
        assert ours.encode(text, add_eos=False) == _unspecial(ours, reference, text), text
        found = reference.encode(text)
        if found[:2] != [ours.bos_id] * 2:  # a BOS that the text begins with is not put there twice
            assert ours.encode(text, add_eos=False, parse_special=True) == found, text
        ids = ours.encode(text)
        for skip in (True, False):
            assert ours.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip), text


def _unspecial(ours, reference, text):
    """Return the reference's ids without its fault: a Unigram model knows "</s>" as a word like any other."""
    if type(reference.backend_tokenizer.model).__name__ != "Unigram":
        return reference.encode(text, split_special_tokens=True)
    parts = ours._split_at_special(text)
    if all(isinstance(part, str) for part in parts):
        return reference.encode(text, split_special_tokens=True)
    return ours.encode(text, add_eos=False)


@given(text=any_text | tricky_text)
@settings(max_examples=150)
def test_any_text_is_encoded_as_by_the_reference(pair, text):
    ours, reference = pair
    ids = ours.encode(text, add_bos=False, add_eos=False)
    assert ids == _unspecial(ours, reference, text)[len(ours.bos_ids) :]
    unknown = ours.token_id(str(NAMES_OF_UNKNOWN.get(type(reference.backend_tokenizer.model).__name__)))
    assert not (set(ours.special_tokens.values()) - {unknown}) & set(ids)
    assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)


NAMES_OF_UNKNOWN = {"Unigram": "<unk>"}


@given(data=st.data())
@settings(max_examples=150)
def test_any_ids_decode_as_by_the_reference_also_in_a_stream(pair, data):
    ours, reference = pair
    # Mostly bytes and special tokens: where streams go wrong.
    token_id = st.integers(0, ours.vocab_size - 1) | st.integers(0, min(262, ours.vocab_size - 1))
    ids = data.draw(st.lists(token_id, max_size=24))
    for skip in (True, False):
        text = reference.decode(ids, skip_special_tokens=skip)
        assert ours.decode(ids, skip) == text
        stream = StreamDecoder(ours, skip)
        assert "".join(stream.push(token_id) for token_id in ids) + stream.finish() == text


@given(data=st.data())
@settings(max_examples=150)
def test_texts_between_special_tokens_are_as_in_the_string(pair, data):
    ours, reference = pair
    by_id = {token_id: text for text, token_id in ours.special_tokens.items()}
    text = st.sampled_from(
        [text for text in HARD_TEXTS if "<" not in text and "[" not in text]
    ) | tricky_text.filter(lambda text: "<" not in text)
    pieces = data.draw(st.lists(text | st.sampled_from(sorted(by_id)), max_size=7))
    whole = "".join(by_id[piece] if isinstance(piece, int) else piece for piece in pieces)
    ids, spans = ours.encode_pieces_with_spans(pieces)
    assert ids == ours.encode_pieces(pieces) == reference.encode(whole, add_special_tokens=False)
    assert all(0 <= start <= end <= len(whole) for start, end in spans)
    covered = {place for start, end in spans for place in range(start, end)}
    assert len(covered) == len(whole)
    for token_id, (start, end) in zip(ids, spans, strict=True):
        if token_id in by_id and token_id != ours.token_id("<unk>"):
            assert whole[start:end] == by_id[token_id]


def test_special_tokens_inside_of_a_piece_stay_text(pair):
    ours, _ = pair
    eos = ours.token(ours.eos_id)
    pieces = [f"the{eos}answer", ours.eos_id, f"{eos} \U000f0000\U000f000a1\U000f000b"]
    ids, spans = ours.encode_pieces_with_spans(pieces)
    assert ids.count(ours.eos_id) == 1
    start = len(pieces[0])
    assert spans[ids.index(ours.eos_id)] == (start, start + len(eos))
    assert spans[-1][1] == start + len(eos) + len(pieces[2])


def test_a_piece_is_a_text_or_the_id_of_a_special_token(pair):
    ours, _ = pair
    with pytest.raises(TokenizerError, match="piece of text"):
        ours.encode_pieces(["the", max(ours.encode("the", False, False))])
    with pytest.raises(TokenizerError, match=f"{ours.vocab_size} ids"):
        ours.encode_pieces([ours.vocab_size])
    for wrong in (None, 2.5, True):
        with pytest.raises(TokenizerError, match="one text"):
            ours.encode_pieces([wrong])
    with pytest.raises(TokenizerError, match="list"):
        ours.encode_pieces("the")
    assert ours.encode_pieces([]) == []


def test_begins_and_ends_where_asked(pair):
    ours, reference = pair
    ids = ours.encode("the answer", add_bos=False, add_eos=False)
    bos = [ours.bos_id] if reference.bos_token else []
    assert ours.encode("the answer") == [*bos, *ids, ours.eos_id]
    assert ours.encode("the answer", add_eos=False) == [*bos, *ids] == reference.encode("the answer")
    if bos:
        again = ours.encode(reference.bos_token + "the answer", parse_special=True)
        assert again.count(ours.bos_id) == 1


@pytest.mark.parametrize("pair", [kind for kind in KINDS if kind != "unigram"], indirect=True)
@given(prompt=any_text | tricky_text, answer=any_text | tricky_text)
@settings(max_examples=100)
def test_a_continuation_joins_the_text_before_it(pair, prompt, answer):
    ours, _ = pair
    ids = ours.encode("x" + prompt, add_eos=False) + ours.encode(answer, add_eos=False, continuation=True)
    joined = ours.decode(
        ours.encode("x", False, False) + ours.encode(prompt + answer, False, False, continuation=True)
    )
    assert ours.decode(ids) == joined or "\u0301" in prompt + answer  # an accent may join across the border
    assert ours.encode(answer, True, False, continuation=True) == ours.encode(
        answer, False, False, continuation=True
    )


@pytest.mark.parametrize("kind", ["llama2", "mistral", "unigram"])
def test_a_word_that_goes_on_is_not_given_a_space(make_folder, kind):
    ours = from_checkpoint(make_folder(kind))
    prompt = ours.encode("answer:", add_eos=False)
    assert ours.decode(prompt + ours.encode("seven", add_eos=False, continuation=True)) == "answer:seven"
    assert ours.decode(prompt + ours.encode(" seven", add_eos=False, continuation=True)) == "answer: seven"
    assert ours.encode(" seven", False, False, continuation=True) == ours.encode("seven", False, False)


@pytest.mark.parametrize("text", [None, 5, b"seven", ["seven", "green"]])
def test_only_text_is_encoded(make_folder, text):
    with pytest.raises(TokenizerError, match="one text"):
        from_checkpoint(make_folder("llama3")).encode(text)


def test_half_a_character_and_unknown_ids_are_named(pair):
    ours, _ = pair
    with pytest.raises(TokenizerError, match=r"character 4 .*\\ud83d.*repair"):
        ours.encode("the \ud83d end")
    for token_id in (-1, ours.vocab_size):
        with pytest.raises(TokenizerError, match=rf"{token_id} .* {ours.vocab_size} ids"):
            ours.decode([3, token_id])


def test_goes_to_another_process(pair):
    ours, _ = pair
    ours.encode_pieces(["the", ours.eos_id])
    copy = pickle.loads(pickle.dumps(ours))
    for text in HARD_TEXTS:
        assert copy.encode(text) == ours.encode(text)
        assert copy.encode(text, continuation=True) == ours.encode(text, continuation=True)
        assert copy.encode_pieces([text, ours.eos_id, text]) == ours.encode_pieces([text, ours.eos_id, text])


def test_special_tokens_that_are_also_words_are_not_found(make_folder):
    ours = from_checkpoint(make_folder("unigram"))
    reference = transformers.AutoTokenizer.from_pretrained(make_folder("unigram"))
    ids = ours.encode("the </s> answer <s>", add_bos=False, add_eos=False)
    assert not {ours.eos_id, ours.bos_id} & set(ids)
    # The fault is real.
    assert ours.eos_id in reference.encode("the </s> answer", split_special_tokens=True)
    assert ours.encode("the </s> answer", add_eos=False, parse_special=True) == reference.encode(
        "the </s> answer"
    )
    pieces = ["the </s> answer", ours.eos_id]
    assert ours.encode_pieces(pieces).count(ours.eos_id) == 1


FLAGS = [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("flags", FLAGS, ids=str)
def test_tokens_added_by_the_settings(make_folder, kind, flags):
    size = from_checkpoint(make_folder(kind)).vocab_size
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    added = {
        str(size): {"content": "<mark>", "special": True, **plain, **flags},
        str(size + 1): {"content": "word", "special": False, **plain, **flags},
    }
    folder = make_folder(kind, added_tokens_decoder=added)
    ours, reference = from_checkpoint(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.vocab_size == len(reference) == size + 2
    assert ours.special_tokens["<mark>"] == size
    assert "word" not in ours.special_tokens
    for left, right in (("the ", " answer"), ("the", "answer"), ("the  ", "\nanswer "), ("", "")):
        whole = f"{left}<mark>{right} word {left}swordfish"
        expected = reference.encode(whole, add_special_tokens=False)
        # The marker has no letters at its ends, and "<mark>" has none either.
        assert ours.encode_pieces([left, size, f"{right} word {left}swordfish"]) == expected
        assert ours.encode(whole, False, False, parse_special=True) == expected
        assert ours.encode(whole, False, False) == reference.encode(
            whole, add_special_tokens=False, split_special_tokens=True
        )
        for skip in (True, False):
            assert ours.decode(expected, skip) == reference.decode(expected, skip_special_tokens=skip)


def test_named_and_further_special_tokens_join(make_folder):
    folder = make_folder(
        "qwen", pad_token="<pad!>", image_token="<image>", additional_special_tokens=["<one>", "<|im_end|>"]
    )
    ours, reference = from_checkpoint(folder), transformers.AutoTokenizer.from_pretrained(folder)
    text = "<pad!><image><one><|im_end|>seven"
    assert ours.encode(text, add_eos=False, parse_special=True) == reference.encode(text)
    assert ours.vocab_size == len(reference)
    assert ours.special_token_names["image_token"] == "<image>"
    assert ours.token(ours.pad_id) == "<pad!>"


def test_settings_in_older_files_join(make_folder):
    folder = make_folder("qwen")
    size = from_checkpoint(folder).vocab_size
    (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": {"content": "<|endoftext|>", "lstrip": False}, "pad_token": "<new>"})
    )
    (folder / "added_tokens.json").write_text(json.dumps({"<new>": size, "newer": size + 1}))
    ours, reference = from_checkpoint(folder), transformers.AutoTokenizer.from_pretrained(folder)
    text = "<new>the newer answer<|endoftext|>"
    assert ours.encode(text, add_eos=False, parse_special=True) == reference.encode(text)
    assert (ours.eos_id, ours.pad_id) == (reference.eos_token_id, reference.pad_token_id)
    assert ours.token(ours.pad_id) == "<new>"


def test_tokens_without_a_row_in_the_embedding_cannot_come_up(make_folder):
    folder = make_folder(
        "gemma",
        pad_token="<late>",
        added_tokens_decoder={
            "600": {"content": "<late>", "special": True},
            "601": {"content": "later", "special": False},
        },
    )
    size = from_checkpoint(folder).vocab_size
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma", "vocab_size": size - 2}))
    ours = from_checkpoint(folder)
    assert ours.vocab_size == size - 2
    assert "<late>" not in ours.special_tokens
    assert "pad_token" not in ours.special_token_names
    assert ours.pad_id < ours.vocab_size
    for text in ("the <late> and later", "later"):
        assert max(ours.encode(text, parse_special=True)) < size - 2
    # Models for images too keep the text model's numbers one level down.
    (folder / "config.json").write_text(json.dumps({"text_config": {"vocab_size": size - 2}}))
    assert from_checkpoint(folder).vocab_size == size - 2


def test_what_the_model_stops_at(make_folder):
    folder = make_folder("qwen")
    first = from_checkpoint(folder).special_tokens["<|endoftext|>"]
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 3, "max_position_embeddings": 48}))
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [first + 2, first], "bos_token_id": first})
    )
    ours = from_checkpoint(folder)
    assert (ours.eos_id, ours.stop_ids) == (first + 2, (first + 2, first))
    assert ours.max_seq_len == 48
    assert ours.encode("seven", add_eos=False) == ours.encode("seven", False, False)  # still no BOS
    (folder / "generation_config.json").unlink()
    assert from_checkpoint(folder).stop_ids == (first + 2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bare_file_is_enough(make_folder, kind):
    folder = make_folder(kind)
    (folder / "tokenizer_config.json").unlink()
    if kind == "llama3":
        assert from_checkpoint(folder).token(from_checkpoint(folder).eos_id) == "<|end_of_text|>"
    ours = from_checkpoint(folder / "tokenizer.json")
    assert ours.bos_ids == tuple(ours.special_tokens[text] for text in [NAMES[kind]["bos_token"]] if text)
    assert ours.eos_id in {ours.special_tokens[text] for text in SPECIAL[kind]}


def test_without_an_end_of_text_it_is_said(make_folder, trained):
    folder = make_folder("qwen")
    (folder / "tokenizer_config.json").unlink()
    content = {**trained["qwen"], "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=r"ends a text .*eos_token"):
        from_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 7}))
    assert from_checkpoint(folder).eos_id == 7


def test_spaces_before_punctuation_are_cleaned_up_as_configured(make_folder):
    for kind in ("unigram", "llama2"):
        folder = make_folder(kind, clean_up_tokenization_spaces=True)
        ours, reference = from_checkpoint(folder), transformers.AutoTokenizer.from_pretrained(folder)
        ids = ours.encode("the answer . seven ? don 't", add_eos=False)
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
        stream = StreamDecoder(ours)
        assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b'{"model": {"type": "BPE", "vocab": {"a', "cut short"),
        (b"[1, 2]", "holds a list"),
        (b'{"a": 1}', "JSON of another kind"),
        (b'{"model": {"vocab": {}}, "added_tokens": 3}', "added_tokens is a int"),
        (b'{"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}}', "cannot|can read"),
        (b'{"model": {"type": "Telepathy", "vocab": {}}}', "can read"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}', "can read"),
        (b"[" * 100_000, "cannot be parsed|damaged"),
        (b"\xff\xfe\x00", "cannot be parsed"),
    ],
)
def test_a_file_of_another_kind_is_recognised(tmp_path, content, says):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=says):
        from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"eos_token": 5}, "eos_token is '5'"),
        ({"eos_token": {"text": "x"}}, "eos_token is .* content"),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is a list"),
        ({"added_tokens_decoder": {"x": {"content": "<a>"}}}, "'x' is no token id"),
        ({"added_tokens_decoder": {"9": "<a>"}}, "content"),
        ({"added_tokens_decoder": {"9": {"content": "<a>", "special": "yes"}}}, "special is 'yes'"),
        ({"additional_special_tokens": [7]}, "additional_special_tokens is '7'"),
        ({"model_max_length": "long"}, "model_max_length is 'long'"),
        ({"clean_up_tokenization_spaces": "yes"}, "clean_up_tokenization_spaces is 'yes'"),
    ],
)
def test_wrong_settings_are_named(make_folder, config, says):
    with pytest.raises(TokenizerError, match=rf"tokenizer_config\.json.*{says}"):
        from_checkpoint(make_folder("qwen", **config))


@pytest.mark.parametrize("kind", KINDS)
def test_other_tools_load_what_is_saved(make_folder, tmp_path, kind):
    import shutil

    folder = make_folder(kind, chat_template="{{ messages[0].content }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ 1 }}")
    ours = from_checkpoint(folder)
    for name, source in (("as it was", ours), ("bare", HFTokenizer(_bare(folder, tmp_path)))):
        saved = tmp_path / name
        saved.mkdir()
        for file in source.files():
            shutil.copyfile(file, saved / file.name)
        source.write_settings(saved)
        reference = transformers.AutoTokenizer.from_pretrained(saved)
        again = from_checkpoint(saved)
        for text in HARD_TEXTS:
            assert reference.encode(text, split_special_tokens=True) == _unspecial(ours, reference, text) or (
                kind == "unigram"
            )
            assert again.encode(text) == source.encode(text)
        assert reference.eos_token_id == again.eos_id == source.eos_id
    assert (tmp_path / "as it was" / "additional_chat_templates" / "rag.jinja").is_file()


def _bare(folder, tmp_path):
    bare = tmp_path / "renamed.json"
    bare.write_bytes((folder / "tokenizer.json").read_bytes())
    return bare


def test_a_vocabulary_that_leaves_ids_out(tmp_path):
    flags = {"special": True, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    vocab = {"b": 1, "c": 30, "d": 17}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": 3, "content": "</s>", **flags}],
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    ours, reference = from_checkpoint(tmp_path), HFTokenizer(tmp_path)._backend
    assert (ours.vocab_size, ours.eos_id) == (31, 3)
    assert ours.encode_pieces(["bcd", 3, "dx"]) == [1, 30, 17, 3, 17]
    assert ours.decode([1, 2, 29, 30, 3]) == reference.decode([1, 30])
    content["model"]["vocab"] = {"b": 0, "c": 4_000_000_000}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="left out"):
        from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    "model",
    [
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "none"},
        {"type": "Unigram", "vocab": [["a", 0.0], ["b", -1.0]], "unk_id": None},
    ],
)
def test_characters_that_a_model_does_not_know_are_named(tmp_path, model):
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "model": model})
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    ours = from_checkpoint(tmp_path)
    with pytest.raises(TokenizerError, match="cannot encode '日本'"):
        ours.encode("日本")


def test_bos_is_found_where_the_vocabulary_has_few_letters(make_folder, trained):
    folder = make_folder("llama3")
    content = json.loads((folder / "tokenizer.json").read_text())
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, "z": 3}
    content["model"] = {"type": "BPE", "vocab": vocab, "merges": []}
    content["pre_tokenizer"] = content["normalizer"] = content["decoder"] = None
    content["post_processor"] = trained["llama2"]["post_processor"]
    content["added_tokens"] = trained["llama2"]["added_tokens"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    (folder / "tokenizer_config.json").write_text(json.dumps(NAMES["llama2"]))
    ours = from_checkpoint(folder)
    assert ours.encode("z") == [1, 3, 2]


def test_a_file_of_weights_is_not_read(tmp_path):
    with open(tmp_path / "tokenizer.json", "wb") as file:
        file.truncate(2**30)
    with pytest.raises(TokenizerError, match=r"1073741824 bytes.*weights"):
        from_checkpoint(tmp_path)


def test_what_the_library_would_crash_on_is_explained(trained, tmp_path):
    content = json.loads(json.dumps(trained["llama2"]))
    content["model"]["continuing_subword_prefix"] = "x"
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="continuing_subword_prefix 'x'"):
        from_checkpoint(tmp_path)
    content = json.loads(json.dumps(trained["llama2"]))
    content["post_processor"]["special_tokens"] = {}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match="post_processor"):
        from_checkpoint(tmp_path)


def test_ids_of_another_tokenizer_in_the_config_say_nothing(make_folder):
    folder = make_folder("llama3")
    (folder / "tokenizer_config.json").unlink()
    config = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    ours = from_checkpoint(folder)
    assert (ours.token(ours.bos_id), ours.token(ours.eos_id)) == ("<|begin_of_text|>", "<|end_of_text|>")
    assert ours.pad_id == ours.eos_id
    config["eos_token_id"] = ours.special_tokens["<|eot_id|>"]
    (folder / "config.json").write_text(json.dumps(config))
    assert from_checkpoint(folder).token(from_checkpoint(folder).eos_id) == "<|eot_id|>"
