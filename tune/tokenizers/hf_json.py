"""Hugging Face's tokenizer.json, through the `tokenizers` library."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.errors import TokenizerError
from tune.tokenizers.base import SIDE_FILES, BaseTokenizer, Span
from tune.tokenizers.detect_format import parse_json, read_tokenizer_file
from tune.tokenizers.export import write_extended, write_hf_settings
from tune.tokenizers.hf_backend import (
    Definition,
    as_added_token,
    build_backend,
    check_definition,
    drop_tokens_without_row,
    encode_raw,
    join_added_tokens,
    read_affixes,
    uses,
    without_prefix,
    without_special_pieces,
)
from tune.tokenizers.hf_pieces import PieceEncoder, unused_block
from tune.tokenizers.rows import show_tokens
from tune.tokenizers.settings import AddedToken, TokenizerSettings, read_settings, refuse_many_tokens
from tune.tokenizers.special_tokens import find_pad, find_special_tokens
from tune.tokenizers.templates import PromptTemplateSpec
from tune.utils.paths import expand_path

if TYPE_CHECKING:
    import tokenizers

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# What transformers' clean_up_tokenization takes away, one after the other.
_CLEAN_UP = (" .", " ?", " !", " ,", (" ' ", "'"), " n't", " 'm", " 's", " 've", " 're")
# Other forms of the same tokenizer, which other tools look for.
_OTHER_FORMS = ("vocab.json", "merges.txt", "tokenizer.model")


class HFTokenizer(BaseTokenizer):
    """A tokenizer read from a tokenizer.json, with the ids of transformers' AutoTokenizer.

    But for Llama 2: transformers 5 builds its tokenizer anew and leaves out the space before a text that starts with
    one or follows a special token. The file has it, sentencepiece has it, and so the model was trained.

    The settings beside the file (tokenizer_config.json and its kin) are honoured; nothing but them and the file
    decides about special tokens.

    Args:
        path: the file, or a directory that holds it as `tokenizer.json`.
        max_seq_len: tokens after which `tokenize_messages` and datasets truncate; by default what the settings
            say.
        prompt_template: how conversations are written as text, see `tune.tokenizers.get_prompt_template`; by
            default the model's own chat template.
        settings: what stands beside the file; read from there if not given.
        definition: the content of a tokenizer.json, where the file itself is of another form.
        add_bos: whether texts begin with a BOS; by default as the definition's post-processor does it.

    Raises:
        TokenizerError: a file is missing, damaged or of another kind, or names no end of a text.
    """

    def __init__(
        self,
        path: str | Path,
        max_seq_len: int | None = None,
        prompt_template: PromptTemplateSpec | None = None,
        *,
        settings: TokenizerSettings | None = None,
        definition: Definition | None = None,
        add_bos: bool | None = None,
    ) -> None:
        self.path = expand_path(path)
        if self.path.is_dir():
            self.path /= "tokenizer.json"
        if settings is None:
            settings = read_settings(self.path.parent)
        super().__init__(settings.max_seq_len if max_seq_len is None else max_seq_len, prompt_template)
        content = b""
        text: str | Definition = definition or ""
        if definition is None:
            content = read_tokenizer_file(self.path)
            definition = parse_json(self.path, content, "tokenizer.json")
            # As it stands: writing it anew takes as long as reading it.
            text = content.decode("utf-8-sig", errors="replace")
        check_definition(definition, self.path, content)
        backend = build_backend(text, self.path)
        join_added_tokens(backend, settings, definition, self.path)
        self.num_rows = settings.num_rows
        backend, self.dropped_tokens = drop_tokens_without_row(backend, settings, self.path)
        self.pad_without_row = find_pad(self.dropped_tokens.values(), settings)
        affixes = read_affixes(backend)
        self._take(backend)
        special = find_special_tokens(self, settings, affixes[0] if affixes else None)
        self.bos_id, self.eos_id, self.pad_id = special.bos_id, special.eos_id, special.pad_id
        self.stop_ids, self.special_token_names = special.stop_ids, special.names
        if add_bos is None:
            self.bos_ids = affixes
        else:
            self.bos_ids = (self.bos_id,) if add_bos else ()
        self._hidden_ids = self._find_hidden_ids()
        is_bpe = type(self._backend.model).__name__ == "BPE"
        self._clean_up = settings.clean_up and not is_bpe
        self._joins_bytes = uses(definition, "decoder", "ByteFallback")
        self._is_extended = False

    def _take(self, backend: tokenizers.Tokenizer) -> None:
        """Make this the library's tokenizer behind this one, and read its tokens."""
        self._backend = backend
        self._backend.encode_special_tokens = True
        self.vocab_size = 1 + max(backend.get_vocab().values(), default=-1)
        self._entries = {
            token_id: as_added_token(token)
            for token_id, token in sorted(backend.get_added_tokens_decoder().items())
        }
        self.special_tokens = {
            token.content: token_id for token_id, token in self._entries.items() if token.special
        }
        self._variants: dict[tuple[bool, bool, bool], tokenizers.Tokenizer] = {}
        self._piece_encoders: dict[tuple[int, bool], PieceEncoder] = {}

    def _find_hidden_ids(self) -> frozenset[int]:
        # A text with unknown characters holds unk tokens by right.
        unknown = self.token_id(str(self.special_token_names.get("unk_token")))
        return frozenset(self.special_tokens.values()) - {-1 if unknown is None else unknown}

    def add_tokens(self, tokens: Sequence[AddedToken]) -> None:
        """Add tokens in place, numbered from the last id on; those that are there already get their flags.

        First come the tokens of its files that were left out, because the model beside them has no row for them.

        Raises:
            TokenizerError: those had other ids than they would get now.
        """
        import tokenizers

        left_out = self.dropped_tokens
        wanted = [*left_out.values(), *tokens]
        backend = build_backend(self._definition, self.path)
        refuse_many_tokens(len(self._entries) + len(wanted), self.path)  # what is saved has to be read again
        backend.add_tokens([tokenizers.AddedToken(token.content, **token.flags()) for token in wanted])
        moved = [t.content for i, t in left_out.items() if backend.token_to_id(t.content) != i]
        if moved:
            raise TokenizerError(
                f"{self.path} cannot take new tokens: ids of it that the model has no row for would be others "
                f"({show_tokens(moved)})"
            )
        self.__dict__.pop("_definition")
        self.__dict__.pop("_has_prefix", None)
        self.dropped_tokens, self.pad_without_row, self._is_extended = {}, None, True
        known = self._backend.get_vocab().values()
        self._take(backend)
        self.new_ids += tuple(sorted(set(backend.get_vocab().values()) - set(known)))
        self._hidden_ids = self._find_hidden_ids()

    @property
    def add_bos(self) -> bool:
        """Whether a text begins with a BOS."""
        return bool(self.bos_ids)

    def files(self) -> list[Path]:
        """Return the files that make this tokenizer up, to be copied beside a saved model."""
        folder = self.path.parent
        has_own_name = self.path.name in ("tokenizer.json", *_OTHER_FORMS)
        names = (*SIDE_FILES, *_OTHER_FORMS) if has_own_name else SIDE_FILES
        beside = [folder / name for name in names]
        return [self.path, *(file for file in beside if file.is_file() and file != self.path)]

    def _content(self) -> bytes:
        return self._definition.encode("utf-8", "surrogatepass")

    def write_settings(self, directory: Path) -> None:
        """Write what other tools need to know of it beside a saved model, where that does not stand there yet."""
        write_hf_settings(self, directory, self._definition)
        if self._is_extended:
            write_extended(directory, self._definition, self._entries, self.path.name != "tokenizer.json")

    def token(self, token_id: int) -> str:
        """Return the token as it stands in the vocabulary, such as "Ġthe" or "<0x0A>"; "" for an unused id."""
        found = self._backend.id_to_token(token_id)
        return "" if found is None else str(found)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary or of an added one, None where there is none."""
        found = self._backend.token_to_id(token)
        return None if found is None else int(found)

    def waits_for_next(self, token_id: int) -> bool:
        """Return whether the text of a token may still change with the one after it.

        A run of byte tokens is read as a whole: with one byte too many, none of it is text.
        """
        return self._clean_up or (
            self._joins_bytes and _BYTE_TOKEN.fullmatch(self.token(token_id)) is not None
        )

    @cached_property
    def _definition(self) -> str:
        return str(self._backend.to_str())

    @cached_property
    def _has_prefix(self) -> bool:
        definition = json.loads(self._definition)
        return bool(without_prefix(definition) != definition)

    def _encode_text(self, text: str, continuation: bool, parse_special: bool) -> list[int]:
        inner = continuation and self._has_prefix
        ids = encode_raw(self._variant(inner, parse_special, False), text).ids
        if not parse_special and not self._hidden_ids.isdisjoint(ids):
            ids = encode_raw(self._variant(inner, False, True), text).ids
        return list(ids)

    def _decode_ids(self, ids: list[int], skip_special: bool) -> str:
        text = str(self._backend.decode(ids, skip_special_tokens=skip_special))
        if self._clean_up:
            for pattern in _CLEAN_UP:
                old, new = (pattern, pattern[1:]) if isinstance(pattern, str) else pattern
                text = text.replace(old, new)
        return text

    def _encode_joined(self, pieces: list[str | int]) -> tuple[list[int], list[Span]]:
        for piece in pieces:
            if isinstance(piece, int) and piece not in self._entries:
                raise TokenizerError(
                    f"id {piece} ({self.token(piece)!r}) is a piece of text, where a special token was expected"
                )
        block = unused_block(piece for piece in pieces if isinstance(piece, str))
        ids, spans = self._piece_encoder(block, False).encode(pieces)
        if self._count(ids) > self._count(pieces):
            ids, spans = self._piece_encoder(block, True).encode(pieces)
        return ids, spans

    def _count(self, pieces: Sequence[str | int]) -> int:
        return sum(map(self._hidden_ids.__contains__, pieces))

    def _piece_encoder(self, block: int, guarded: bool) -> PieceEncoder:
        key = (block, guarded)
        if key not in self._piece_encoders:
            backend = self._build(guarded=guarded)
            self._piece_encoders[key] = PieceEncoder(backend, self._entries, self.vocab_size, block)
        return self._piece_encoders[key]

    def _variant(self, inner: bool, parse_special: bool, guarded: bool) -> tokenizers.Tokenizer:
        """Return the tokenizer with or without its prefix, and as strict about special tokens as asked.

        Args:
            inner: without what it puts before a text.
            parse_special: finds special tokens in text.
            guarded: its model does not know special tokens as text.
        """
        key = (inner, parse_special, guarded)
        if not any(key):
            return self._backend
        if key not in self._variants:
            variant = self._build(inner=inner, guarded=guarded)
            variant.encode_special_tokens = not parse_special
            self._variants[key] = variant
        return self._variants[key]

    def _build(self, *, inner: bool = False, guarded: bool = False) -> tokenizers.Tokenizer:
        definition = json.loads(self._definition)
        # Post-processors may cut the places of tokens; BOS and EOS are our own work.
        definition["post_processor"] = None
        if inner:
            definition = without_prefix(definition)
        if guarded:
            definition = without_special_pieces(definition, self.special_tokens, "\U0010fffd")
        backend = build_backend(definition, self.path)
        backend.encode_special_tokens = True
        return backend

    def __getstate__(self) -> dict[str, Any]:
        built: dict[str, Any] = {"_variants": {}, "_piece_encoders": {}}
        return {name: value for name, value in self.__dict__.items() if name != "_definition"} | built

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._backend.encode_special_tokens = True  # the one thing that the library does not write down

    def __repr__(self) -> str:
        return f"HFTokenizer({str(self.path)!r}, vocab_size={self.vocab_size})"
