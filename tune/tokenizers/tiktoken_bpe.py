"""Vocabularies in tiktoken's format, lines of `base64 rank`: Llama 3's tokenizer.model and Qwen's qwen.tiktoken."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Container, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.errors import TokenizerError
from tune.tokenizers.base import BaseTokenizer, Span
from tune.tokenizers.detect_format import (
    describe_mismatch,
    detect_format,
    find_tokenizer_file,
    read_tokenizer_file,
)
from tune.tokenizers.export import write_hf_settings
from tune.tokenizers.nfc import nfc_with_offsets
from tune.tokenizers.settings import AddedToken, TokenizerSettings
from tune.tokenizers.special_tokens import find_pad, find_special_tokens
from tune.tokenizers.templates import PromptTemplateSpec
from tune.tokenizers.tiktoken_export import tokenizer_json
from tune.tokenizers.tiktoken_families import TiktokenFamily, find_family
from tune.utils.paths import expand_path

if TYPE_CHECKING:
    import tiktoken


class TiktokenTokenizer(BaseTokenizer):
    """A tokenizer read from a tiktoken vocabulary.

    The file holds tokens only; how words are cut, and which special tokens follow, is the family's.

    Args:
        path: the file, or a directory that holds it as `tokenizer.model` or `qwen.tiktoken`.
        max_seq_len: tokens after which `tokenize_messages` and datasets truncate; None for no limit.
        prompt_template: how conversations are written as text, see `tune.tokenizers.get_prompt_template`.
        family: "llama3" or "qwen"; found out from the number of tokens and the file's name if not given.
        settings: what stands beside the file; names in it go before those of the family.

    Raises:
        TokenizerError: the file is missing, damaged, of another kind or of no known family.
    """

    def __init__(
        self,
        path: str | Path,
        max_seq_len: int | None = None,
        prompt_template: PromptTemplateSpec | None = None,
        *,
        family: str | None = None,
        settings: TokenizerSettings | None = None,
    ) -> None:
        super().__init__(max_seq_len, prompt_template)
        self.path = find_tokenizer_file(expand_path(path), "tokenizer.model", "qwen.tiktoken")
        settings = settings or TokenizerSettings()
        self._ranks = read_ranks(self.path)
        self._family = find_family(family, self.path.name, len(self._ranks), settings.model_type)
        if family is None:
            self._check_size(settings)
        self.special_tokens = self._special(settings)
        self._special_text = {token_id: text for text, token_id in self.special_tokens.items()}
        self.vocab_size = max(len(self._ranks), *(token_id + 1 for token_id in self._special_text))
        settings = _with_defaults(settings, self._family, self._special_text)
        special = find_special_tokens(self, settings, None)
        self.bos_id, self.eos_id, self.pad_id = special.bos_id, special.eos_id, special.pad_id
        self.special_token_names = special.names
        usual = (self.special_tokens.get(text) for text in self._family.stops)
        stops = special.stop_ids if settings.stop_ids else (*special.stop_ids, *usual)
        self.stop_ids = tuple(dict.fromkeys(stop for stop in stops if stop is not None))
        add_bos = settings.add_bos if settings.add_bos is not None else self._family.bos is not None
        self.bos_ids = (self.bos_id,) if add_bos else ()
        self._encoding = self._load_encoding()

    @property
    def add_bos(self) -> bool:
        """Whether a text begins with a BOS."""
        return bool(self.bos_ids)

    def _content(self) -> bytes:
        return repr((self._ranks, self._family)).encode()

    def write_settings(self, directory: Path) -> None:
        """Write an equal tokenizer.json and what belongs to it, where they do not stand there yet."""
        write_hf_settings(self, directory, self.as_tokenizer_json())

    def token(self, token_id: int) -> str:
        """Return the text of a token, U+FFFD for bytes that are none; "" for an unused id."""
        if token_id in self._special_text:
            return self._special_text[token_id]
        return self._token_bytes(token_id).decode("utf-8", errors="replace")

    def token_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary or of a special one, None where there is none."""
        found = self.special_tokens.get(token)
        return self._ranks.get(token.encode()) if found is None else found

    def _encode_text(self, text: str, continuation: bool, parse_special: bool) -> list[int]:
        if parse_special:
            return self._encode_joined(list(self._joined(self._split_at_special(text))))[0]
        return self._encode_ordinary(self._compose(text))

    def _encode_ordinary(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in _split_long(text, self._family.longest_text, self._family.longest_run):
            ids += self._encoding.encode_ordinary(part)
        return ids

    def _compose(self, text: str) -> str:
        return nfc_with_offsets(text)[0] if self._family.composes else text

    def _decode_ids(self, ids: list[int], skip_special: bool) -> str:
        parts = []
        for token_id in ids:
            special = self._special_text.get(token_id)
            if special is None:
                parts.append(self._token_bytes(token_id))
            elif not skip_special:
                parts.append(special.encode())
        return b"".join(parts).decode("utf-8", errors="replace")

    def _encode_joined(self, pieces: list[str | int]) -> tuple[list[int], list[Span]]:
        ids: list[int] = []
        spans: list[Span] = []
        offset = 0
        for piece in pieces:
            if isinstance(piece, int):
                length = len(self.token(piece))
                ids.append(piece)
                spans.append((offset, offset + length))
            else:
                length = len(piece)
                for token_id, (start, end) in self._with_spans(piece):
                    ids.append(token_id)
                    spans.append((offset + start, offset + end))
            offset += length
        return ids, spans

    def _with_spans(self, text: str) -> Iterator[tuple[int, Span]]:
        """Yield the ids of a text, each with the characters it stands for."""
        places: list[Span] | None = None
        read = text
        if self._family.composes:
            read, places = nfc_with_offsets(text)
        ids = self._encode_ordinary(read)
        # The character of each byte.
        characters: list[int] = []
        for index, char in enumerate(read):
            characters += [index] * len(char.encode())
        ends = list(accumulate(len(self._token_bytes(token_id)) for token_id in ids))
        for token_id, start, end in zip(ids, [0, *ends], ends):
            first, last = characters[start], characters[end - 1]
            span = (first, last + 1) if places is None else (places[first][0], places[last][1])
            yield token_id, span

    def _token_bytes(self, token_id: int) -> bytes:
        return self._by_rank.get(token_id, b"")

    @cached_property
    def _by_rank(self) -> dict[int, bytes]:
        return {rank: token for token, rank in self._ranks.items()}

    def as_tokenizer_json(self) -> str:
        """Return the content of a tokenizer.json with the same ids."""
        bos = self.token(self.bos_id) if self.bos_ids else None
        if bos is not None and bos not in self.special_tokens:
            raise TokenizerError(
                f"bos_token_id {self.bos_id} is {bos!r} in {self.path}, which is no special token: the ids in "
                "config.json or generation_config.json belong to another tokenizer"
            )
        return tokenizer_json(
            self._ranks, self.special_tokens, self._family.pattern, self._family.composes, bos
        )

    def _special(self, settings: TokenizerSettings) -> dict[str, int]:
        first = len(self._ranks)
        by_id = {first + place: text for place, text in enumerate(self._family.special)}
        # Settings may give the reserved tokens names of their own.
        by_id |= {i: token.content for i, token in settings.added.items() if i >= first}
        self.num_rows = settings.num_rows
        self.dropped_tokens = {
            token_id: settings.added.get(token_id, AddedToken(text, special=True))
            for token_id, text in sorted(by_id.items())
            if not settings.fits(token_id)
        }
        self.pad_without_row = find_pad(self.dropped_tokens.values(), settings)
        return {text: token_id for token_id, text in sorted(by_id.items()) if settings.fits(token_id)}

    def _check_size(self, settings: TokenizerSettings) -> None:
        """Refuse a file that was cut at the end of a line: all special ids would be wrong."""
        held, family = len(self._ranks), self._family
        expected = held + len(family.special)
        stated = [i for i, token in settings.added.items() if token.content == family.special[0]]
        is_other = settings.num_rows not in (None, expected) and held != family.num_ranks
        if (stated and stated[0] != held) or is_other:
            raise TokenizerError(
                f"{self.path} holds {held} tokens, which does not go with the files beside it: they say that "
                + (
                    f"{family.special[0]} has id {stated[0]}"
                    if stated
                    else f"the model knows {settings.num_rows} tokens, {len(family.special)} of them special"
                )
                + f". The file may be cut short ({family.name}'s holds {family.num_ranks}); if it is not, "
                f"say family={family.name}"
            )

    def _load_encoding(self) -> tiktoken.Encoding:
        import tiktoken

        return tiktoken.Encoding(
            name=self._family.name,
            pat_str=self._family.pattern,
            mergeable_ranks=self._ranks,
            special_tokens={},
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_encoding"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._encoding = self._load_encoding()

    def __repr__(self) -> str:
        return f"TiktokenTokenizer({str(self.path)!r}, {self._family.name}, vocab_size={self.vocab_size})"


def read_ranks(path: Path) -> dict[bytes, int]:
    """Return the tokens of a tiktoken file with their ranks.

    Raises:
        TokenizerError: it is of another kind, damaged or cut short.
    """
    content = read_tokenizer_file(path)
    if detect_format(content) != "tiktoken":
        raise TokenizerError(describe_mismatch("tiktoken vocabulary", path, content))
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        token, _, rank = line.partition(b" ")
        try:
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (binascii.Error, ValueError) as error:
            raise TokenizerError(
                f"{path}, line {number}: {line[:40]!r} is no `base64 rank`; the file is damaged or cut short"
            ) from error
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or sorted(ranks.values()) != list(range(len(ranks))):
        what = f"no token for byte {missing[0]:#04x}" if missing else "ranks that are not 0, 1, 2, ..."
        raise TokenizerError(f"{path} has {what}: the file is damaged ({len(ranks)} tokens)")
    return ranks


def _with_defaults(
    settings: TokenizerSettings, family: TiktokenFamily, special: Container[int]
) -> TokenizerSettings:
    """Return settings in which the family says what the files do not.

    A model's configuration may keep the ids of its class's defaults, which are words of this vocabulary: they say
    nothing.
    """
    ids = {role: token_id for role, token_id in settings.ids.items() if token_id in special}
    names: dict[str, AddedToken | None] = {
        f"{role}_token": AddedToken(text, special=True)
        for role, text in (("bos", family.bos), ("eos", family.eos), ("pad", family.pad))
        if text is not None and f"{role}_token_id" not in ids
    }
    stops = tuple(token_id for token_id in settings.stop_ids if token_id in special)
    return replace(settings, names={**names, **settings.names}, ids=ids, stop_ids=stops)


def _split_long(text: str, longest_text: int | None, longest_run: int) -> Iterator[str]:
    """Yield a text in the parts in which Llama 3's reference code hands it to the library.

    Runs with, or without, white space are cut after `longest_run` characters: on longer ones the library takes
    time that grows with their square, or fails.
    """
    if len(text) <= longest_run:
        yield text
        return
    step = longest_text or len(text)
    for begin in range(0, len(text), step):
        part = text[begin : begin + step]
        start = run = 0
        was_space = part[0].isspace()
        for index, char in enumerate(part):
            is_space = char.isspace()
            run = run + 1 if is_space == was_space else 1
            was_space = is_space
            if run > longest_run:
                yield part[start:index]
                start, run = index, 1
        yield part[start:]
