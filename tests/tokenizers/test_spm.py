"""SentencePieceTokenizer: sentencepiece's own ids, and nothing special from text."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from itertools import groupby
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tune.data import Llama2ChatTemplate, Message
from tune.errors import TokenizerError
from tune.tokenizers import SentencePieceTokenizer, Tokenizer, from_checkpoint

HARD_TEXTS = [
    "",
    " ",
    "the answer",
    "  two  leading, trailing  ",
    "line\n\nbreaks\r\n\tand tabs",
    "日本語のテキスト 한국어 العربية",
    "👩‍👩‍👧‍👦 😀😀 🇨🇭",
    "<s> not special </s> <unk> <pad> <0x0A> [INST]",
    "naïve Zürich e\u0301 \u00a0nbsp \u200bzero",
    "▁literal▁metaspace",
    "nul\x00inside",
    "1234567890 3.14159",
    "\ufeffbom \ufffd replacement \U0010ffff",
]
any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module")
def tokenizer(spm_file: Path) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(spm_file)


@pytest.fixture(scope="module")
def reference(spm_file: Path) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(spm_file))


def test_satisfies_the_protocol(tokenizer):
    assert isinstance(tokenizer, Tokenizer)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (1, 2, (2,))
    assert 0 <= tokenizer.pad_id < tokenizer.vocab_size


@pytest.mark.parametrize("text", HARD_TEXTS)
def test_ids_are_those_of_sentencepiece(tokenizer, reference, text):
    expected = reference.encode(text)
    assert tokenizer.encode(text, add_bos=False, add_eos=False) == expected
    assert tokenizer.encode(text) == [1, *expected, 2]
    assert tokenizer.encode(text, add_eos=False) == [1, *expected]
    assert tokenizer.decode(tokenizer.encode(text)) == reference.decode(expected)


@given(text=any_text)
@settings(max_examples=200)
def test_text_never_becomes_special_and_comes_back(text):
    tokenizer, reference = _shared()
    ids = tokenizer.encode(text, add_bos=False, add_eos=False)
    assert ids == reference.encode(text)
    assert not {0, 1, 2} & set(ids)
    # The vocabulary's own mark for a space is the one character that sentencepiece cannot keep apart.
    assert tokenizer.decode(ids) == text.replace("▁", " ")


@given(prompt=any_text, answer=any_text)
@settings(max_examples=200)
def test_prompt_and_continuation_decode_to_the_texts_joined(prompt, answer):
    tokenizer, _ = _shared()
    prompt_ids = tokenizer.encode(prompt, add_eos=False)
    ids = prompt_ids + tokenizer.encode(answer, add_eos=True, continuation=True)
    if prompt:
        assert tokenizer.decode(ids) == (prompt + answer).replace("▁", " ")
    assert ids[: len(prompt_ids)] == tokenizer.encode(prompt, add_eos=False)
    assert ids.count(tokenizer.bos_id) == ids.count(tokenizer.eos_id) == 1


def test_a_word_after_a_line_break_is_not_given_a_space(tokenizer):
    prompt = tokenizer.encode("Response:\n", add_eos=False)
    inner = tokenizer.encode("answer", add_eos=False, continuation=True)
    spaced = tokenizer.encode(" answer", add_eos=False, continuation=True)
    assert tokenizer.decode(prompt + inner) == "Response:\nanswer"
    assert tokenizer.decode(prompt + spaced) == "Response:\n answer"
    assert spaced == tokenizer.encode("answer", add_bos=False, add_eos=False)


def test_folded_spaces_keep_the_one_before_a_continuation(folding_spm_file):
    tokenizer = SentencePieceTokenizer(folding_spm_file)
    prompt = tokenizer.encode("the answer:", add_eos=False)
    assert (
        tokenizer.decode(prompt + tokenizer.encode(" seven", False, False, continuation=True))
        == "the answer: seven"
    )
    assert (
        tokenizer.decode(prompt + tokenizer.encode("seven", False, False, continuation=True))
        == "the answer:seven"
    )


def test_special_tokens_in_a_text_take_no_space_from_the_next(spm_file, folding_spm_file):
    for file in (spm_file, folding_spm_file):
        tokenizer = SentencePieceTokenizer(file)
        ids = tokenizer.encode("the answer") + tokenizer.encode("seven")
        inner = sentencepiece.SentencePieceProcessor(model_file=str(file))
        assert tokenizer.decode(ids) == inner.decode(ids) == "the answer seven"
        assert tokenizer.decode(ids, skip_special=False) == "<s>the answer</s><s> seven</s>"


def test_equals_the_reference_llama_tokenizer(spm_file, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import normalizers

    (tmp_path / "tokenizer.model").write_bytes(spm_file.read_bytes())
    reference = transformers.LlamaTokenizer.from_pretrained(tmp_path)
    # As in the tokenizer.json that Llama 2 was published with; from a bare model file, this version of the
    # reference would leave a leading space out.
    backend = reference.backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    tokenizer = SentencePieceTokenizer(spm_file)
    for text in HARD_TEXTS:
        # The reference turns "<s>" into BOS.
        if "<s>" not in text:
            expected = reference.encode(text, add_special_tokens=False)
            assert tokenizer.encode(text, add_bos=False, add_eos=False) == expected, text


def test_special_tokens_are_left_out_or_written_out(tokenizer):
    ids = [1, *tokenizer.encode("the answer", False, False), 2, *tokenizer.encode("seven", False, False)]
    assert tokenizer.decode(ids) == "the answer seven"
    assert tokenizer.decode(ids, skip_special=False) == "<s>the answer</s> seven"


def test_added_tokens_decode_but_never_come_from_text(spm_file):
    size = SentencePieceTokenizer(spm_file).vocab_size
    tokenizer = SentencePieceTokenizer(
        spm_file, added_tokens={"<|end|>": size + 3, "<s>": 1}, eos_token="<|end|>"
    )
    assert tokenizer.vocab_size == size + 4
    assert tokenizer.eos_id == size + 3
    assert tokenizer.stop_ids == (size + 3,)
    assert size + 3 not in tokenizer.encode("the <|end|>", add_eos=False)
    assert tokenizer.decode(tokenizer.encode("the end")) == "the end"
    assert tokenizer.decode(tokenizer.encode("the end"), skip_special=False) == "<s>the end<|end|>"


def test_a_padding_token_without_an_embedding_is_not_used(spm_file):
    size = SentencePieceTokenizer(spm_file).vocab_size
    tokenizer = SentencePieceTokenizer(spm_file, added_tokens={"<pad>": size}, pad_token="<pad>")
    assert tokenizer.pad_id < size


def test_a_tokenizer_without_bos_never_adds_one(spm_file):
    tokenizer = SentencePieceTokenizer(spm_file, add_bos=False)
    assert tokenizer.encode("seven", add_bos=True, add_eos=False) == tokenizer.encode("seven", False, False)


def test_messages_are_cut_without_an_eos_in_the_middle(spm_file):
    messages = [Message("user", "the question", masked=True), Message("assistant", "the answer")]
    whole = SentencePieceTokenizer(spm_file, prompt_template=Llama2ChatTemplate())
    tokens, mask = whole.tokenize_messages(messages)
    assert len(tokens) == len(mask)
    assert tokens[0] == 1
    assert tokens[-1] == 2
    assert not mask[-1]
    cut = SentencePieceTokenizer(spm_file, max_seq_len=len(tokens) - 1, prompt_template="llama2_chat")
    assert cut.tokenize_messages(messages) == (tokens[:-1], mask[:-1])
    open_ended, _ = whole.tokenize_messages(messages, add_eos=False)
    assert open_ended == tokens[:-1]


def test_goes_to_another_process(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    text = "the answer 😀"
    assert copy.encode(text) == tokenizer.encode(text)
    assert copy.encode(text, continuation=True) == tokenizer.encode(text, continuation=True)


@pytest.mark.parametrize("token_id", [-1, 10**6])
def test_an_id_outside_of_the_vocabulary_is_named(tokenizer, token_id):
    with pytest.raises(TokenizerError, match=rf"{token_id} .* {tokenizer.vocab_size} ids"):
        tokenizer.decode([5, token_id])


def test_half_a_character_is_named_with_its_place(tokenizer):
    with pytest.raises(TokenizerError, match=r"character 4 .*\\ud83d.*repair"):
        tokenizer.encode("the \ud83d end")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b'{"model": {"vocab": {}}}', r"tokenizer\.json"),
        (b"<!DOCTYPE html>", "web page"),
        (b"IQ== 0\nIg== 1\n", "tiktoken"),
        (b"\x00\x01garbage" * 50, "cannot be parsed"),
    ],
)
def test_a_file_of_another_kind_is_recognised(tmp_path, content, says):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(TokenizerError, match=says):
        SentencePieceTokenizer(file)


def test_a_truncated_file_is_an_error(spm_file, tmp_path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(spm_file.read_bytes()[:-100])
    with pytest.raises(TokenizerError, match="no SentencePiece model"):
        SentencePieceTokenizer(file)


def test_missing_files_and_wrong_pieces_are_named(spm_file, tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer file .*nowhere"):
        SentencePieceTokenizer(tmp_path / "nowhere.model")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(TokenizerError, match=r"holds weights\.bin"):
        SentencePieceTokenizer(tmp_path)
    with pytest.raises(TokenizerError, match=r"EOS token '<end>' is not in the vocabulary"):
        SentencePieceTokenizer(spm_file, eos_token="<end>")
    with pytest.raises(TokenizerError, match="max_seq_len is 1"):
        SentencePieceTokenizer(spm_file, max_seq_len=1)


@pytest.fixture(scope="module")
def marked_spm_file(tmp_path_factory):
    """A model with control pieces and with pieces that it finds in any text, as Gemma's has."""
    file = tmp_path_factory.mktemp("marked") / "tokenizer.model"
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the answer of apple <turn> seven"] * 50 + ["walk the green river 12"] * 20),
        model_writer=content,
        vocab_size=307,
        model_type="bpe",
        byte_fallback=True,
        control_symbols=["[INST]"],
        user_defined_symbols=["<turn>", "\n\n"],
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    file.write_bytes(content.getvalue())
    return file


def test_special_tokens_are_known_by_name(tokenizer, marked_spm_file):
    assert tokenizer.special_tokens == {"<s>": 1, "</s>": 2, "<unk>": 0}
    assert tokenizer.special_token_names == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    assert SentencePieceTokenizer(marked_spm_file).special_tokens["[INST]"] == 3


def test_special_tokens_come_from_text_only_when_asked(tokenizer):
    text = "the </s>answer<s>"
    assert not {1, 2} & set(tokenizer.encode(text, False, False))
    parsed = tokenizer.encode(text, False, False, parse_special=True)
    assert parsed == tokenizer.encode_pieces(["the ", 2, "answer", 1])
    assert tokenizer.encode("<s>seven", parse_special=True) == tokenizer.encode("seven")


def test_a_piece_that_settings_call_special_is_not_found_in_text(marked_spm_file, tmp_path):
    reference = sentencepiece.SentencePieceProcessor(model_file=str(marked_spm_file))
    turn = reference.piece_to_id("<turn>")
    text = "the <turn>\n\nanswer"
    plain = SentencePieceTokenizer(marked_spm_file)
    assert plain.encode(text, False, False) == reference.encode(text)
    assert turn in plain.encode(text)
    shutil.copyfile(marked_spm_file, tmp_path / "tokenizer.model")
    added = {str(turn): {"content": "<turn>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    guarded = from_checkpoint(tmp_path)
    for made in (guarded, pickle.loads(pickle.dumps(guarded))):
        assert turn not in made.encode(text)
        assert reference.piece_to_id("\n\n") in made.encode(text)
        assert made.decode(made.encode(text)) == text
        assert made.encode(text, False, False, parse_special=True) == reference.encode(text)
        assert made.encode_pieces(["the ", turn, "\n\nanswer"]) == reference.encode(text)
        assert made.decode(made.encode_pieces(["the ", turn])) == "the "
        assert made.encode("the answer of 12") == plain.encode("the answer of 12")


@given(pieces=st.lists(any_text | st.sampled_from([1, 2]), max_size=6))
@settings(max_examples=200)
def test_texts_between_special_tokens(pieces):
    tokenizer, reference = _shared()
    names = {1: "<s>", 2: "</s>"}
    whole = "".join(names[piece] if isinstance(piece, int) else piece for piece in pieces)
    ids, spans = tokenizer.encode_pieces_with_spans(pieces)
    # Each text gets its space, as the texts of turns do that are encoded one by one.
    expected: list[int] = []
    for is_text, group in groupby(pieces, key=lambda piece: isinstance(piece, str)):
        run = list(group)
        expected += reference.encode("".join(run)) if is_text else run
    assert ids == tokenizer.encode_pieces(pieces) == expected
    covered = {place for start, end in spans for place in range(start, end)}
    assert covered == set(range(len(whole)))
    for token_id, (start, end) in zip(ids, spans, strict=True):
        text = tokenizer.token(token_id).replace("▁", " ")
        if token_id in names:
            assert whole[start:end] == names[token_id]
        elif not text.startswith("<0x"):
            assert whole[start:end].replace("▁", " ") in (text, text[1:])


def test_without_legacy_only_the_first_text_gets_a_space(spm_file, tmp_path):
    shutil.copyfile(spm_file, tmp_path / "tokenizer.model")
    config = {"legacy": False, "tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = from_checkpoint(tmp_path)
    reference = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    for pieces in (["the", 2, "answer", 1, "seven"], [1, "seven", 2], ["日本", 1, "é"]):
        whole = "".join({1: "<s>", 2: "</s>"}.get(piece, piece) for piece in pieces)
        assert tokenizer.encode_pieces(pieces) == reference.encode(whole, add_special_tokens=False)


def test_added_tokens_take_the_space_beside_them_along(spm_file, tmp_path):
    shutil.copyfile(spm_file, tmp_path / "tokenizer.model")
    size = SentencePieceTokenizer(spm_file).vocab_size
    flags = {"special": True, "normalized": False, "single_word": False}
    added = {
        str(size): {"content": "<right>", "lstrip": False, "rstrip": True, **flags},
        str(size + 1): {"content": "<left>", "lstrip": True, "rstrip": False, **flags},
        str(size + 2): {"content": "word", **flags, "special": False},
    }
    config = {"legacy": False, "tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = from_checkpoint(tmp_path)
    reference = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    whole = "the<right> \n answer <left>seven"
    pieces = ["the", size, " \n answer ", size + 1, "seven"]
    assert tokenizer.encode_pieces(pieces) == reference.encode(whole, add_special_tokens=False)
    # What is no special token stays in the text.
    assert tokenizer.decode([*tokenizer.encode("the"), size, size + 2]) == "theword"


_CACHE: list = []


@pytest.fixture(autouse=True)
def _share(tokenizer, reference):
    # hypothesis examples cannot take function-scoped fixtures; these are shared by the module anyway.
    _CACHE[:] = [tokenizer, reference]


def _shared():
    return _CACHE[0], _CACHE[1]


@pytest.mark.parametrize("text", [None, 5, b"seven", ["seven", "green"]])
def test_only_text_is_encoded(spm_file, text):
    with pytest.raises(TokenizerError, match="one text"):
        SentencePieceTokenizer(spm_file).encode(text)
