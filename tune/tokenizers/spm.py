"""SentencePiece models: the tokenizer of Llama 2 and its kin.

Every id comes from sentencepiece itself, which never turns text into control tokens: a user who writes
"</s>" gets the pieces of those four characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tune.errors import TokenizerError
from tune.tokenizers.export import write_hf_tokenizer_config
from tune.tokenizers.messages import Message
from tune.tokenizers.segments import tokenize_segments
from tune.tokenizers.templates import PromptTemplateSpec, get_prompt_template
from tune.utils.paths import expand_path

_PROCESSORS = ("_sp", "_sp_inner", "_sp_exact")
# Small files that stand beside a tokenizer in a Hugging Face directory and belong to it.
COMPANION_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
)
# ModelProto.normalizer_spec (field 3) with add_dummy_prefix (field 3 of NormalizerSpec) false. Protobuf merges
# a message field that comes twice, so appending these bytes to a model switches the dummy prefix off and
# leaves everything else: sentencepiece/src/sentencepiece_model.proto.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"
# The same with remove_extra_whitespaces (field 4) false as well.
_SPACES_AS_THEY_ARE = b"\x1a\x04\x18\x00\x20\x00"


class SentencePieceTokenizer:
    """A tokenizer read from a SentencePiece model file.

    Args:
        path: the model file (often `tokenizer.model`), or a directory that holds one by that name.
        max_seq_len: tokens after which `tokenize_messages` and datasets truncate; None for no limit.
        prompt_template: how conversations are written as text: a template or its short name, see
            `tune.tokenizers.get_prompt_template`.
        add_bos: False for models that were trained without a BOS token; `encode` then never adds one.
        bos_token, eos_token, pad_token: pieces that replace those the model file names.
        added_tokens: special tokens beyond the model file, text to id. Never produced from text.
        stop_ids: further ids that end a generation.

    Raises:
        TokenizerError: the file is missing, is no SentencePiece model, or lacks a BOS or EOS piece.
    """

    def __init__(
        self,
        path: str | Path,
        max_seq_len: int | None = None,
        prompt_template: PromptTemplateSpec | None = None,
        *,
        add_bos: bool = True,
        bos_token: str | None = None,
        eos_token: str | None = None,
        pad_token: str | None = None,
        added_tokens: Mapping[str, int] | None = None,
        stop_ids: Sequence[int] = (),
    ) -> None:
        try:
            self.path = _find_model_file(expand_path(path))
        except OSError as error:
            raise TokenizerError(f"cannot read {error.filename or path}: {error.strerror}") from error
        if max_seq_len is not None and max_seq_len < 2:
            raise TokenizerError(
                f"max_seq_len is {max_seq_len}; an example needs at least 2 tokens to learn from"
            )
        self.max_seq_len = max_seq_len
        self.add_bos = add_bos
        self._proto = _read_model_file(self.path)
        self._load_processors()
        self._added = {
            text: token_id
            for text, token_id in (added_tokens or {}).items()
            if token_id >= self._sp.vocab_size() or self._sp.id_to_piece(token_id) != text
        }
        self._added_text = {token_id: text for text, token_id in self._added.items()}
        self.vocab_size = max(self._sp.vocab_size(), *(token_id + 1 for token_id in self._added.values()), 0)
        self.bos_id = self._special_id("BOS", bos_token, self._sp.bos_id())
        self.eos_id = self._special_id("EOS", eos_token, self._sp.eos_id())
        self.unk_token = self.token(self._sp.unk_id())
        self.pad_id = self._padding_id(pad_token)
        self.stop_ids = tuple(dict.fromkeys((self.eos_id, *stop_ids)))
        self.prompt_template = None if prompt_template is None else get_prompt_template(prompt_template)

    def encode(
        self, text: str, add_bos: bool = True, add_eos: bool = True, *, continuation: bool = False
    ) -> list[int]:
        """Returns the ids of `text`, exactly those of sentencepiece, between BOS and EOS where asked.

        Args:
            text: any text; special tokens written out in it stay text.
            add_bos: put BOS first (never done by a tokenizer whose model has no use for one).
            add_eos: put EOS last. Leave it out of a prompt that a model shall continue.
            continuation: `text` goes on where other text ended, so no space is added before it and no BOS:
                the ids of a prompt and of its continuation together decode to the two texts joined.

        Raises:
            TokenizerError: the text holds a lone surrogate, which no UTF-8 can hold, or is none.
        """
        if not isinstance(text, str):  # sentencepiece takes a list, and returns a list of lists
            raise TokenizerError(f"encode takes one text, and a {type(text).__name__} came")
        processor = self._sp
        if continuation and not (self._strips_spaces and text.startswith(" ")):
            processor = self._sp_inner
        try:
            ids: list[int] = processor.encode(text)
        except (
            RuntimeError,
            UnicodeEncodeError,
        ) as error:  # which of them depends on sentencepiece's version
            raise TokenizerError(_why_not_encodable(text)) from error
        if add_bos and self.add_bos and not continuation:
            ids.insert(0, self.bos_id)
        if add_eos:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Returns the text of `ids`; invalid bytes become U+FFFD.

        Args:
            ids: token ids; the space that `encode` puts before a text is taken off again.
            skip_special: leave special tokens out; otherwise they are written as their names.

        Raises:
            TokenizerError: an id lies outside the vocabulary.
        """
        ids = [int(token_id) for token_id in ids]
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise TokenizerError(
                    f"token id {token_id} cannot be decoded: {self.path} holds {self.vocab_size} ids, "
                    f"0 to {self.vocab_size - 1}. Does the tokenizer belong to the model?"
                )
        return "".join(self._decode_runs(ids, skip_special))

    def tokenize_messages(
        self, messages: Sequence[Message], add_eos: bool = True
    ) -> tuple[list[int], list[bool]]:
        """Returns the ids of a conversation and, for each, whether it is masked (not trained on).

        The conversation is written with `prompt_template` (plain where there is none), one BOS and one EOS
        around each pair of turns. At most `max_seq_len` tokens come back; a cut conversation has no EOS.
        """
        template = self.prompt_template or get_prompt_template("plain")
        tokens, mask = tokenize_segments(self, template.segments(messages), add_eos=add_eos)
        return tokens[: self.max_seq_len], mask[: self.max_seq_len]

    def files(self) -> list[Path]:
        """Returns the files that make this tokenizer up, to be copied beside a saved model."""
        companions = [self.path.parent / name for name in COMPANION_FILES]
        return [self.path, *(file for file in companions if file.is_file())]

    def write_settings(self, directory: Path) -> None:
        """Writes what other tools need to know of it beside a saved model, where that does not stand there yet."""
        write_hf_tokenizer_config(self, directory)

    def token(self, token_id: int) -> str:
        """Returns the piece as it stands in the vocabulary, such as "▁the" or "<0x0A>"."""
        if token_id in self._added_text:
            return self._added_text[token_id]
        return str(self._sp.id_to_piece(token_id))

    def token_id(self, piece: str) -> int | None:
        """Returns the id of a piece of the vocabulary or of an added token, None where there is none."""
        if piece in self._added:
            return self._added[piece]
        found = int(self._sp.piece_to_id(piece))
        return None if found == self._sp.unk_id() and piece != self.token(found) else found

    def _load_processors(self) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._sp = SentencePieceProcessor(model_proto=self._proto)
            self._sp_inner = SentencePieceProcessor(model_proto=self._proto + _NO_DUMMY_PREFIX)
            self._sp_exact = SentencePieceProcessor(model_proto=self._proto + _SPACES_AS_THEY_ARE)
        except RuntimeError as error:
            raise TokenizerError(_why_not_a_model(self.path, self._proto)) from error
        # Llama's model keeps runs of spaces; a model with sentencepiece's default settings folds them.
        self._strips_spaces = self._sp.encode(" a") == self._sp.encode("a")

    def _special_id(self, role: str, piece: str | None, default: int) -> int:
        if piece is not None:
            found = self.token_id(piece)
            if found is None:
                raise TokenizerError(f"the {role} token {piece!r} is not in the vocabulary of {self.path}")
            return found
        if default < 0:
            raise TokenizerError(f"{self.path} has no {role} piece; name one with {role.lower()}_token")
        return default

    def _padding_id(self, piece: str | None) -> int:
        """Returns an id to pad with: looked up in the embedding, but never attended to nor learnt from."""
        named = self.token_id(piece) if piece is not None else self._sp.pad_id()
        # Padding tokens that were added later often have no row in the model's embedding.
        if named is not None and 0 <= named < self._sp.vocab_size():
            return named
        return int(self._sp.unk_id())

    def _decode_runs(self, ids: Sequence[int], skip_special: bool) -> Iterator[str]:
        """Yields the text of runs of ordinary and of special ids."""
        processor = self._sp
        for is_special, run in groupby(ids, key=self._is_special):
            if not is_special:
                yield processor.decode(list(run))
                # Only the start of a text carries the space to be taken off.
                processor = self._sp_exact
            elif not skip_special:
                yield "".join(self.token(token_id) for token_id in run)

    def _is_special(self, token_id: int) -> bool:
        return token_id in self._added_text or self._sp.is_control(token_id)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _PROCESSORS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load_processors()

    def __repr__(self) -> str:
        return f"SentencePieceTokenizer({str(self.path)!r}, vocab_size={self.vocab_size})"


def _find_model_file(path: Path) -> Path:
    if path.is_dir():
        inner = path / "tokenizer.model"
        if inner.is_file():
            return inner
        names = sorted(entry.name for entry in path.iterdir())[:8]
        raise TokenizerError(
            f"no tokenizer.model in {path}; it holds {', '.join(names) if names else 'nothing'}. "
            "Give the path of the SentencePiece file itself if it has another name."
        )
    if not path.is_file():
        raise TokenizerError(f"there is no tokenizer file {path}")
    return path


def _read_model_file(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"cannot read {path}: {error.strerror}") from error
    # sentencepiece accepts an empty proto and then fails at each call.
    if not content or path.suffix == ".json":
        raise TokenizerError(_why_not_a_model(path, content))
    return content


def _why_not_a_model(path: Path, content: bytes) -> str:
    """Says what a file that is no SentencePiece model seems to be instead."""
    head = content[:200].lstrip()
    if not content:
        reason = "it is empty; the download was probably cut short"
    elif head.startswith(b"version https://git-lfs"):
        reason = "it is a git-lfs pointer, not the file itself; run `git lfs pull` or download it again"
    elif head[:1] in (b"{", b"["):
        reason = "it is JSON. Hugging Face tokenizer.json files cannot be read yet; use the tokenizer.model"
    elif head[:1] == b"<":
        reason = "it is a web page, probably a refused download of a gated model"
    elif b"== 0\n" in content[:16]:
        reason = "it is a tiktoken vocabulary (Llama 3), which cannot be read yet"
    else:
        reason = "its content cannot be parsed"
    return f"{path} is no SentencePiece model ({len(content)} bytes): {reason}"


def _why_not_encodable(text: str) -> str:
    for position, char in enumerate(text):
        if "\ud800" <= char <= "\udfff":
            context = ascii(text[max(0, position - 20) : position + 20])
            return (
                f"character {position} of a text is the lone surrogate {char!a}, half of a character that "
                f"UTF-8 cannot hold, in {context}; repair the text where it comes from"
            )
    return f"sentencepiece cannot encode a text of {len(text)} characters"
