"""SentencePiece models: the tokenizer of Llama 2, Mistral, Gemma and their kin.

Every id comes from sentencepiece itself, which never turns text into control tokens: a user who writes
"</s>" gets the pieces of those four characters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from tune.errors import TokenizerError
from tune.tokenizers.base import BaseTokenizer, Span
from tune.tokenizers.detect_format import describe_mismatch, find_tokenizer_file, read_tokenizer_file
from tune.tokenizers.export import MADE_FROM, UNLIMITED, note_digest, write_hf_settings
from tune.tokenizers.settings import TOKEN_NAMES, AddedToken, TokenizerSettings, read_json
from tune.tokenizers.special_tokens import find_pad
from tune.tokenizers.spm_export import tokenizer_json
from tune.tokenizers.spm_proto import NO_DUMMY_PREFIX, SPACES_AS_THEY_ARE, read_spans, with_control_pieces
from tune.tokenizers.templates import PromptTemplateSpec
from tune.utils.paths import expand_path

_PROCESSORS = ("_sp", "_sp_inner", "_sp_exact")


class SentencePieceTokenizer(BaseTokenizer):
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
        settings: what the files beside it say, for all of the above that is not given.

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
        settings: TokenizerSettings | None = None,
    ) -> None:
        super().__init__(max_seq_len, prompt_template)
        settings = settings or TokenizerSettings()
        self.path = find_tokenizer_file(expand_path(path), "tokenizer.model")
        self.add_bos = add_bos if settings.add_bos is None else settings.add_bos
        # Of a model without the setting each text gets its space: as Llama 2 was trained, turn by turn.
        self.prefix_each = settings.legacy is not False
        self._proto = read_tokenizer_file(self.path)
        if self.path.suffix == ".json" or not self._proto:  # sentencepiece accepts an empty proto
            raise TokenizerError(describe_mismatch("SentencePiece model", self.path, self._proto))
        self._load_processors()
        entries = {token_id: token for token_id, token in settings.added.items() if settings.fits(token_id)}
        self.num_rows = settings.num_rows
        self.dropped_tokens = {i: token for i, token in sorted(settings.added.items()) if i not in entries}
        self.pad_without_row = find_pad(self.dropped_tokens.values(), settings)
        entries |= {i: AddedToken(text, special=True) for text, i in (added_tokens or {}).items()}
        self._make_control(entries)
        self._added = {
            token.content: token_id
            for token_id, token in entries.items()
            if token_id >= self._sp.vocab_size() or self._sp.id_to_piece(token_id) != token.content
        }
        self._added_text = {token_id: text for text, token_id in self._added.items()}
        self._entries = entries
        self.vocab_size = max(self._sp.vocab_size(), *(token_id + 1 for token_id in self._added.values()), 0)
        self.bos_id = self._special_id("BOS", bos_token or settings.name("bos_token"), self._sp.bos_id())
        self.eos_id = self._special_id("EOS", eos_token or settings.name("eos_token"), self._sp.eos_id())
        self.bos_ids = (self.bos_id,) if self.add_bos else ()
        self.unk_token = self.token(self._sp.unk_id())
        self.pad_id = self._padding_id(pad_token or settings.name("pad_token"))
        self.stop_ids = tuple(dict.fromkeys((self.eos_id, *settings.stop_ids, *stop_ids)))
        self._name_special_tokens(settings)

    def _content(self) -> bytes:
        return self._proto + repr((self.prefix_each, sorted(self._entries.items()))).encode()

    def write_settings(self, directory: Path) -> None:
        """Write what other tools need to know of it beside a saved model, where that does not stand there yet."""
        write_hf_tokenizer_config(self, directory)

    def as_tokenizer_json(self) -> str | None:
        """Return the content of a tokenizer.json with the same ids, None where there is no such file."""
        if not self.prefix_each:
            return None
        return tokenizer_json(self._proto, self.token(self.bos_id) if self.add_bos else None, self._entries)

    def token(self, token_id: int) -> str:
        """Return the piece as it stands in the vocabulary, such as "▁the" or "<0x0A>"."""
        if token_id in self._added_text:
            return self._added_text[token_id]
        # An id between the added ones may be nobody's.
        return str(self._sp.id_to_piece(token_id)) if token_id < self._sp.vocab_size() else ""

    def token_id(self, token: str) -> int | None:
        """Return the id of a piece of the vocabulary or of an added token, None where there is none."""
        if token in self._added:
            return self._added[token]
        found = int(self._sp.piece_to_id(token))
        return None if found == self._sp.unk_id() and token != self.token(found) else found

    def _encode_text(self, text: str, continuation: bool, parse_special: bool) -> list[int]:
        if not parse_special:
            ids: list[int] = self._processor(text, continuation).encode(text)
            return ids
        return self._encode_joined(list(self._joined(self._split_at_special(text))), continuation)[0]

    def _encode_joined(
        self, pieces: list[str | int], continuation: bool = False
    ) -> tuple[list[int], list[Span]]:
        ids: list[int] = []
        spans: list[Span] = []
        offset = 0
        for index, piece in enumerate(pieces):
            if isinstance(piece, int):
                length = len(self.token(piece))
                ids.append(piece)
                spans.append((offset, offset + length))
            else:
                length = len(piece)
                start, end = self._without_stripped(pieces, index)
                text = piece[start:end]
                inner = continuation or (index > 0 and not self.prefix_each)
                for token_id, (first, last) in read_spans(self._processor(text, inner), text):
                    ids.append(token_id)
                    spans.append((offset + start + first, offset + start + last))
            offset += length
        return ids, spans

    def _without_stripped(self, pieces: list[str | int], index: int) -> Span:
        """Return what of a text is left when the special tokens beside it took their white space."""
        text = str(pieces[index])
        before = self._neighbour(pieces, index - 1)
        after = self._neighbour(pieces, index + 1)
        start = len(text) - len(text.lstrip()) if before and before.rstrip else 0
        end = len(text.rstrip()) if after and after.lstrip else len(text)
        return start, max(start, end)

    def _neighbour(self, pieces: list[str | int], index: int) -> AddedToken | None:
        piece = pieces[index] if 0 <= index < len(pieces) else None
        return self._entries.get(piece) if isinstance(piece, int) else None

    def _processor(self, text: str, continuation: bool) -> Any:
        if continuation and not (self._strips_spaces and text.startswith(" ")):
            return self._sp_inner
        return self._sp

    def _load_processors(self) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._sp = SentencePieceProcessor(model_proto=self._proto)
            self._sp_inner = SentencePieceProcessor(model_proto=self._proto + NO_DUMMY_PREFIX)
            self._sp_exact = SentencePieceProcessor(model_proto=self._proto + SPACES_AS_THEY_ARE)
        except RuntimeError as error:
            raise TokenizerError(describe_mismatch("SentencePiece model", self.path, self._proto)) from error
        # Llama's model keeps runs of spaces; a model with sentencepiece's default settings folds them.
        self._strips_spaces = self._sp.encode(" a") == self._sp.encode("a")

    def _make_control(self, entries: Mapping[int, AddedToken]) -> None:
        """Make control tokens of pieces that the settings call special, but that the file finds in any text."""
        size = self._sp.vocab_size()
        found = {
            token.content
            for token_id, token in entries.items()
            if token.special and token_id < size and self._sp.id_to_piece(token_id) == token.content
            if not (self._sp.is_control(token_id) or self._sp.is_unknown(token_id))
        }
        if found:
            self._proto = with_control_pieces(self._proto, found)
            self._load_processors()

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
        """Return an id to pad with: looked up in the embedding, but never attended to nor learnt from."""
        named = self.token_id(piece) if piece is not None else self._sp.pad_id()
        # Padding tokens that were added later often have no row in the model's embedding.
        if named is not None and 0 <= named < self._sp.vocab_size():
            return named
        return int(self._sp.unk_id())

    def _name_special_tokens(self, settings: TokenizerSettings) -> None:
        self._skipped = frozenset(
            token_id
            for token_id in (*range(self._sp.vocab_size()), *self._added_text)
            if self._is_special(token_id)
        )
        special = {self.token(token_id): token_id for token_id in sorted(self._skipped)}
        self.special_tokens = {**special, self.unk_token: int(self._sp.unk_id())}
        named = {
            "bos_token": self.token(self.bos_id),
            "eos_token": self.token(self.eos_id),
            "unk_token": self.unk_token,
        }
        for role, token in settings.names.items():
            if role not in named and token is not None and self.token_id(token.content) is not None:
                named[role] = token.content
        order = (*TOKEN_NAMES, *named)
        self.special_token_names = {role: named[role] for role in dict.fromkeys(order) if role in named}

    def _decode_ids(self, ids: list[int], skip_special: bool) -> str:
        return "".join(self._decode_runs(ids, skip_special))

    def _decode_runs(self, ids: Sequence[int], skip_special: bool) -> Iterator[str]:
        """Yield the text of runs of ordinary and of special ids."""
        processor = self._sp
        for is_piece, run in groupby(ids, key=self._is_piece):
            if is_piece:
                yield processor.decode(list(run))
                # Only the start of a text carries the space to be taken off.
                processor = self._sp_exact
            else:
                yield "".join(
                    self.token(token_id)
                    for token_id in run
                    if not (skip_special and token_id in self._skipped)
                )

    def _is_piece(self, token_id: int) -> bool:
        return token_id < self._sp.vocab_size() and not (
            token_id in self._added_text or self._sp.is_control(token_id)
        )

    def _is_special(self, token_id: int) -> bool:
        if token_id in self._added_text:
            return self._entries[token_id].special
        return token_id < self._sp.vocab_size() and bool(self._sp.is_control(token_id))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in _PROCESSORS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load_processors()

    def __repr__(self) -> str:
        return f"SentencePieceTokenizer({str(self.path)!r}, vocab_size={self.vocab_size})"


def write_hf_tokenizer_config(tokenizer: SentencePieceTokenizer, directory: str | Path) -> list[Path]:
    """Write what `transformers.AutoTokenizer` needs beside a bare `tokenizer.model`; return the files written.

    That is an equal tokenizer.json where there can be one: of the model file alone, transformers 5 leaves the space
    before the first word out for most families, and with it gives other ids than the model was trained with.

    Files that already stand in `directory` are left alone. The tokenizer's own files are not copied here.

    Args:
        tokenizer: the tokenizer whose `files()` were, or will be, copied into `directory`.
        directory: the saved model's directory.
    """
    names: dict[str, Any] = {
        "bos_token": tokenizer.token(tokenizer.bos_id),
        "eos_token": tokenizer.token(tokenizer.eos_id),
        "unk_token": tokenizer.unk_token,
        "pad_token": tokenizer.token(tokenizer.pad_id),
    }
    config: dict[str, Any] = {
        "add_bos_token": tokenizer.add_bos,
        "add_eos_token": False,
        **names,
        "clean_up_tokenization_spaces": False,
        "legacy": tokenizer.prefix_each,
        "model_max_length": tokenizer.max_seq_len or UNLIMITED,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
    }
    settings, file = Path(directory, "tokenizer_config.json"), Path(directory, "tokenizer.json")
    # Settings that came with the model name a class, which may make something else of a tokenizer.json.
    is_ours = not settings.exists() or MADE_FROM in read_json(settings)
    definition = tokenizer.as_tokenizer_json() if is_ours and not file.exists() else None
    if definition is not None:
        # The class of Llama would make another tokenizer of the vocabulary in it.
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", MADE_FROM: "tokenizer.model"}
    contents = {settings.name: config, "special_tokens_map.json": names}
    written = write_hf_settings(tokenizer, directory, definition, contents)
    if definition is not None:
        note_digest(Path(directory))
    return written
