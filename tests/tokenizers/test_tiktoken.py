"""TiktokenTokenizer: tiktoken's own ids, the special tokens of the families, and an equal tokenizer.json."""

from __future__ import annotations

import json
import pickle
import random
import shutil

import pytest
import tiktoken
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from trained_tokenizers import DIGITS, HARD_TEXTS, PATTERN, tiktoken_lines, train

from tune.errors import TokenizerError
from tune.tokenizers import StreamDecoder, TiktokenTokenizer, Tokenizer, from_checkpoint
from tune.tokenizers.nfc import nfc_with_offsets
from tune.tokenizers.tiktoken_bpe import _split_long, read_ranks
from tune.tokenizers.tiktoken_export import tokenizer_json
from tune.tokenizers.tiktoken_families import LLAMA3, QWEN

FILE_NAMES = {"llama3": "tokenizer.model", "qwen": "qwen.tiktoken"}
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
tricky_text = st.text(st.sampled_from(" \n\ta1é\u0301\u0323\u1100\u1161日😀\u200d\ufffd<|>'s"), max_size=30)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    made = {}
    for kind, name in FILE_NAMES.items():
        made[kind] = tmp_path_factory.mktemp(kind) / name
        made[kind].write_bytes(tiktoken_lines(train(kind)))
    return made


@pytest.fixture(scope="module")
def pairs(files):
    """Of each family a tokenizer of ours, and tiktoken's with the same ranks."""
    made = {}
    for kind, file in files.items():
        ranks = read_ranks(file)
        reference = tiktoken.Encoding(
            kind, pat_str=PATTERN % DIGITS[kind], mergeable_ranks=ranks, special_tokens={}
        )
        made[kind] = (from_checkpoint(file.parent), reference)
    return made


@pytest.fixture(params=FILE_NAMES)
def kind(request):
    return request.param


def composed(kind, text):
    return nfc_with_offsets(text)[0] if kind == "qwen" else text


def test_satisfies_the_protocol(pairs, kind):
    ours, reference = pairs[kind]
    assert isinstance(ours, TiktokenTokenizer)
    assert isinstance(ours, Tokenizer)
    first = reference.n_vocab
    assert (LLAMA3.num_ranks + len(LLAMA3.special), QWEN.num_ranks + len(QWEN.special)) == (128_256, 151_851)
    if kind == "llama3":
        assert ours.vocab_size == first + 256
        assert (ours.bos_id, ours.eos_id, ours.pad_id) == (first, first + 1, first + 4)
        assert ours.stop_ids == (first + 1, first + 8, first + 9)
        named = {6: "<|start_header_id|>", 7: "<|end_header_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>"}
        assert {place: ours.token(first + place) for place in named} == named
        assert ours.token(first + 255) == "<|reserved_special_token_247|>"
        assert ours.encode("seven") == [first, *reference.encode_ordinary("seven"), first + 1]
    else:
        assert ours.vocab_size == first + 208
        assert (ours.eos_id, ours.pad_id, ours.stop_ids) == (first, first, (first, first + 2))
        assert ours.encode("seven") == [*reference.encode_ordinary("seven"), first]
        assert "bos_token" not in ours.special_token_names


@given(text=any_text | tricky_text | st.sampled_from(HARD_TEXTS))
@settings(max_examples=300)
def test_ids_are_those_of_tiktoken_and_come_back(text):
    for kind, (ours, reference) in _CACHE.items():
        ids = ours.encode(text, add_bos=False, add_eos=False)
        assert ids == reference.encode_ordinary(composed(kind, text))
        assert ids == ours.encode(text, add_eos=False, continuation=True)
        assert ours.decode(ids) == composed(kind, text)
        pieces, spans = ours.encode_pieces_with_spans([text, ours.eos_id, text])
        assert pieces == [*ids, ours.eos_id, *ids]
        assert [start for start, _ in spans] == sorted(start for start, _ in spans)
        covered = {place for start, end in spans for place in range(start, end)}
        assert covered == set(range(2 * len(text) + len(ours.token(ours.eos_id))))


@given(data=st.data())
@settings(max_examples=200)
def test_streams_add_up(data):
    ours, reference = _CACHE[data.draw(st.sampled_from(sorted(_CACHE)))]
    ids = data.draw(st.lists(st.integers(0, 260) | st.integers(0, ours.vocab_size - 1), max_size=24))
    for skip in (True, False):
        stream = StreamDecoder(ours, skip)
        assert "".join(map(stream.push, ids)) + stream.finish() == ours.decode(ids, skip)
    ordinary = [token_id for token_id in ids if token_id < reference.n_vocab]
    assert ours.decode(ids) == reference.decode(ordinary)


def test_spans_are_those_of_the_characters(pairs, kind):
    ours, _ = pairs[kind]
    text = "the 😀e\u0301x"
    ids, spans = ours.encode_pieces_with_spans([text])
    by_text = {}
    for token_id, span in zip(ids, spans, strict=True):
        by_text.setdefault(span, []).append(token_id)
    assert ours.decode([t for span, tokens in by_text.items() if span[0] >= 4 for t in tokens]).endswith(
        composed(kind, "e\u0301x")
    )
    for (start, end), tokens in by_text.items():
        if "\ufffd" not in ours.decode(tokens):
            assert ours.decode(tokens) == composed(kind, text[start:end])


def test_special_tokens_come_from_text_only_when_asked(pairs, kind):
    ours, _ = pairs[kind]
    eos = ours.token(ours.eos_id)
    text = f"the {eos} answer"
    special = set(ours.special_tokens.values())
    assert not special & set(ours.encode(text, False, False))
    parsed = ours.encode(text, False, False, parse_special=True)
    assert parsed == ours.encode_pieces(["the ", ours.eos_id, " answer"])
    assert ours.decode(parsed) == "the  answer"
    assert ours.decode(parsed, skip_special=False) == text


@pytest.mark.parametrize("with_model_file", [True, False])
def test_the_saved_directory_gives_the_same_ids_elsewhere(pairs, kind, tmp_path, with_model_file):
    ours, _ = pairs[kind]
    if with_model_file:
        for file in ours.files():
            shutil.copyfile(file, tmp_path / file.name)
    ours.write_settings(tmp_path)
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    again = from_checkpoint(tmp_path)
    assert (again.bos_ids, again.eos_id, again.pad_id) == (ours.bos_ids, ours.eos_id, ours.pad_id)
    assert len(reference) == ours.vocab_size
    plain = [text for text in HARD_TEXTS if "<|" not in text]
    for text in [*plain, *(ours.decode([token_id]) for token_id in range(430))]:
        ids = ours.encode(text, add_eos=False)
        assert reference.encode(text) == ids
        assert again.encode(text, add_eos=False) == ids
        assert reference.decode(ids, skip_special_tokens=True) == ours.decode(ids)
        whole = f"{text}{ours.token(ours.eos_id)}{text}"
        assert reference.encode(whole, add_special_tokens=False) == ours.encode_pieces(
            [text, ours.eos_id, text]
        )


def test_a_token_that_comes_before_its_parts(tmp_path):
    import base64

    # Its parts come after it: joined at last, it comes first.
    tokens = [*(bytes([byte]) for byte in range(256)), b"xyz", b"xy", b"yz"]
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (tmp_path / "tokenizer.model").write_bytes(b"\n".join(lines))
    ours = from_checkpoint(tmp_path)
    saved = tmp_path / "saved"
    saved.mkdir()
    ours.write_settings(saved)
    again = from_checkpoint(saved)
    assert ours.encode("xyz", False, False) == [256]
    for text in ("xyz", "axyz", "xyzxyz", "xxyyzz", "xyz xyz", "xyzzy"):
        assert ours.encode(text) == again.encode(text)


def test_the_tokenizer_json_of_any_vocabulary_gives_its_ids():
    # Words of two letters repeat themselves: where the order of equal joins would show.
    for seed in range(60):
        rng = random.Random(seed)
        parts = [b"a", b"b"]
        for _ in range(20):
            parts.append(rng.choice(parts) + rng.choice(parts))
        longer = list(dict.fromkeys(part for part in parts if 1 < len(part) < 12))
        if seed % 2:
            rng.shuffle(longer)
        tokens = [*(bytes([byte]) for byte in range(256)), *longer]
        ranks = {token: rank for rank, token in enumerate(tokens)}
        reference = tiktoken.Encoding("ab", pat_str=r"\w+", mergeable_ranks=ranks, special_tokens={})
        made = tokenizers.Tokenizer.from_str(tokenizer_json(ranks, {}, r"\w+", False, None))
        for _ in range(60):
            word = "".join(rng.choices("ab", k=rng.randint(1, 25)))
            assert made.encode(word).ids == reference.encode_ordinary(word)


def test_settings_beside_it_go_before_the_family(files, tmp_path):
    shutil.copyfile(files["llama3"], tmp_path / "tokenizer.model")
    first = len(read_ranks(files["llama3"]))
    added = {str(first + 11): {"content": "<|mine|>", "special": True}}
    config: dict = {"eos_token": "<|eot_id|>", "model_max_length": 99, "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [first + 1, first + 9]}))
    ours = from_checkpoint(tmp_path)
    assert (ours.eos_id, ours.stop_ids, ours.max_seq_len) == (first + 9, (first + 9, first + 1), 99)
    assert ours.special_tokens["<|mine|>"] == first + 11
    assert ours.bos_ids == (first,)
    # Only the rows that the model has.
    (tmp_path / "params.json").write_text(json.dumps({"vocab_size": first + 256}))
    assert from_checkpoint(tmp_path).vocab_size == first + 256


def test_ids_of_another_tokenizer_in_the_config_say_nothing(files, tmp_path):
    shutil.copyfile(files["llama3"], tmp_path / "tokenizer.model")
    first = len(read_ranks(files["llama3"]))
    config = {"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = from_checkpoint(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (first, first + 1, first + 4)
    assert ours.stop_ids == (first + 1, first + 8, first + 9)
    config["eos_token_id"] = [first + 9, first + 8]
    (tmp_path / "config.json").write_text(json.dumps(config))
    ours = from_checkpoint(tmp_path)
    assert (ours.eos_id, ours.stop_ids) == (first + 9, (first + 9, first + 8))


def test_meta_keeps_it_one_folder_up(files, tmp_path):
    (tmp_path / "8B").mkdir()
    (tmp_path / "8B" / "params.json").write_text(json.dumps({"vocab_size": -1}))
    shutil.copyfile(files["llama3"], tmp_path / "tokenizer.model")
    assert from_checkpoint(tmp_path / "8B").path == tmp_path / "tokenizer.model"


def test_a_file_cut_at_the_end_of_a_line_is_found_out(files, tmp_path):
    lines = files["llama3"].read_bytes().splitlines(keepends=True)
    (tmp_path / "params.json").write_text(json.dumps({"vocab_size": len(lines) + 256}))
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    assert from_checkpoint(tmp_path).vocab_size == len(lines) + 256
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines[:-7]))
    with pytest.raises(TokenizerError, match=rf"{len(lines) - 7} tokens.*{len(lines) + 256}.*cut short"):
        from_checkpoint(tmp_path)
    (tmp_path / "params.json").unlink()
    added = {str(len(lines)): {"content": "<|begin_of_text|>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    with pytest.raises(TokenizerError, match=rf"<\|begin_of_text\|> has id {len(lines)}.*cut short"):
        from_checkpoint(tmp_path)


def test_damaged_files_are_named(files, tmp_path):
    whole = files["llama3"].read_bytes()
    lines = whole.splitlines(keepends=True)
    for content, says in (
        (whole[:-2].rsplit(b" ", 1)[0], f"line {len(lines)}: .* cut short"),
        (b"".join([*lines[:300], b"no token\n"]), "line 301: .* damaged"),
        (b"".join(lines[:200]), "no token for byte 0xc8"),
        (b"".join([*lines[:260], *lines[261:]]), "ranks that are not"),
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b'{"a": 1}', "JSON of another kind"),
    ):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(TokenizerError, match=says):
            TiktokenTokenizer(tmp_path)


def test_a_vocabulary_of_no_known_family_is_not_guessed_at(files, tmp_path):
    file = shutil.copyfile(files["llama3"], tmp_path / "o200k_base.tiktoken")
    with pytest.raises(TokenizerError, match="how words are cut; known are those of llama3, qwen"):
        from_checkpoint(file)
    assert TiktokenTokenizer(file, family="llama3").encode("seven")
    with pytest.raises(TokenizerError, match="no tiktoken family 'gpt'"):
        TiktokenTokenizer(file, family="gpt")
    with pytest.raises(TokenizerError, match=r"no tokenizer\.model or qwen\.tiktoken"):
        TiktokenTokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="there is no tokenizer file"):
        TiktokenTokenizer(tmp_path / "nowhere")


def test_long_runs_are_read_in_parts(pairs, kind):
    ours, reference = pairs[kind]
    # Far beyond what the library takes in one go.
    spaces = ours.encode(" " * 1_000_000 + "x", add_bos=False, add_eos=False)
    assert ours.decode(spaces) == " " * 1_000_000 + "x"
    text = "seven" * 5_000 + "\n" + " " * 25_000 + "x"
    assert ours.encode(text, False, False) == reference.encode_ordinary(text)
    runs = list(_split_long("a" * 11 + " " * 9 + "b" * 4, None, 4))
    assert runs == ["aaaa", "aaaa", "aaa    ", "    ", " bbbb"]
    assert list(_split_long("abcdefg hij", 6, 4)) == ["abcd", "ef", "g hij"]


def test_goes_to_another_process(pairs, kind):
    ours, _ = pairs[kind]
    copy = pickle.loads(pickle.dumps(ours))
    for text in HARD_TEXTS:
        assert copy.encode(text) == ours.encode(text)
    with pytest.raises(TokenizerError, match=r"character 4 .*\\ud83d.*repair"):
        ours.encode("the \ud83d end")
    with pytest.raises(TokenizerError, match=f"{ours.vocab_size} ids"):
        ours.decode([ours.vocab_size])


@given(text=any_text | tricky_text)
@settings(max_examples=300)
def test_composing_knows_what_became_what(text):
    import unicodedata

    composed, places = nfc_with_offsets(text)
    assert composed == unicodedata.normalize("NFC", text)
    assert len(places) == len(composed)
    groups = dict.fromkeys(places)
    assert [place for start, end in groups for place in range(start, end)] == list(range(len(text)))
    for span in groups:
        part = "".join(char for char, place in zip(composed, places, strict=True) if place == span)
        assert part == unicodedata.normalize("NFC", text[slice(*span)])


_CACHE: dict = {}


@pytest.fixture(autouse=True)
def _share(pairs):
    # hypothesis examples cannot take function-scoped fixtures; these are shared by the module anyway.
    _CACHE.update(pairs)
