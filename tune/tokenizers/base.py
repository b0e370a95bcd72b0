"""What all tokenizers share: the checks, BOS and EOS, conversations, and text between special tokens."""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tune.errors import TokenizerError
from tune.tokenizers.messages import Message
from tune.tokenizers.settings import AddedToken
from tune.tokenizers.templates import AnyTemplate, PromptTemplateSpec, get_prompt_template
from tune.utils.logging import get_logger

if TYPE_CHECKING:
    from tune.tokenizers.chat_template import ChatTemplate

Span = tuple[int, int]

# Small files that stand beside a tokenizer in a Hugging Face directory and belong to it.
SIDE_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
)


class BaseTokenizer(ABC):
    """Text to ids and back; a subclass knows one kind of file.

    Attributes are those of `tune.tokenizers.Tokenizer`.

    Args:
        max_seq_len: tokens after which conversations and datasets are truncated; None for no limit.
        prompt_template: how conversations are written as text; goes before the model's chat template.

    Raises:
        TokenizerError: `max_seq_len` leaves no room to learn.
    """

    path: Path
    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int
    stop_ids: tuple[int, ...]
    special_tokens: Mapping[str, int]
    special_token_names: dict[str, str]
    # Put before a text where a BOS is asked for; () for models that use none.
    bos_ids: tuple[int, ...]
    # By id, left out because the model beside the file has no row for them; and which of them is there to pad with.
    dropped_tokens: Mapping[int, AddedToken] = MappingProxyType({})
    pad_without_row: str | None = None
    # Of the embedding of that model; None where there is none beside the file.
    num_rows: int | None = None
    # Tokens were added on purpose: a model that is trained with them gets the rows that it lacks.
    may_outgrow_model: bool = False
    new_ids: tuple[int, ...] = ()  # theirs, those of tokens that the model had no row for among them

    def __init__(self, max_seq_len: int | None, prompt_template: PromptTemplateSpec | None) -> None:
        if max_seq_len is not None and max_seq_len < 2:
            raise TokenizerError(
                f"max_seq_len is {max_seq_len}; an example needs at least 2 tokens to learn from"
            )
        self.max_seq_len = max_seq_len
        self.prompt_template: AnyTemplate | None = (
            None if prompt_template is None else get_prompt_template(prompt_template)
        )
        self.chat_template: ChatTemplate | None = None
        # How the family of its builder writes conversations: see `tune.tokenizers.family_format`.
        self.family_template: AnyTemplate | None = None
        # What the model is trained in, and the same where it did not come with the checkpoint: saved in its place.
        self.trained_template: ChatTemplate | None = None
        self.adopted_template: ChatTemplate | None = None

    def adopt_chat_template(
        self, template: AnyTemplate, system_prompt: str = "", variables: Mapping[str, Any] | None = None
    ) -> None:
        """Make the template that a model is trained in its own; of several, the first.

        From then on the token that ends its turns ends generations, and both are saved with the tokenizer: other tools
        would not know how the model is to be asked, nor when it has answered. Messages written one right after the
        other (`plain`) are no conversation that a model could be asked in, and leave things as they are.

        Args:
            template: as it is used with this tokenizer.
            system_prompt: what conversations without a system text began with.
            variables: what the template was given beside the conversation.
        """
        from tune.tokenizers.chat_template import ChatTemplate, stop_ids_of, template_for
        from tune.tokenizers.trained_template import as_chat_template

        chosen = template_for(template, self)
        trained = as_chat_template(chosen, bool(self.bos_ids), system_prompt, variables or {})
        if trained is None:
            return
        if self.trained_template is None:
            self.stop_ids = stop_ids_of(self, template)
            is_own = self.chat_template is not None and self.chat_template.source == trained.source
            self.trained_template, self.adopted_template = trained, None if is_own else trained
            if self.chat_template is None and isinstance(template, ChatTemplate):
                self.chat_template = trained
        elif trained.source != self.trained_template.source:
            get_logger().warning(
                f"The data is not all written alike: in {trained}, after {self.trained_template} (or with another "
                "system prompt, or other variables). The first is what is saved with the model."
            )

    @property
    def tokens_without_row(self) -> dict[str, int]:
        """Tokens of its files that are left out, because the model beside them has no row for them, text to id."""
        return {token.content: token_id for token_id, token in self.dropped_tokens.items()}

    @property
    def stop_tokens(self) -> list[int]:
        """`stop_ids`, under torchtune's name."""
        return list(self.stop_ids)

    def __call__(self, sample: dict[str, Any], inference: bool = False) -> dict[str, Any]:
        """Put `tokens` and `mask` in place of a row's `messages`, as torchtune's tokenizers do, and return the row.

        Args:
            sample: changed in place.
            inference: the last answer is left open, for a model to go on.
        """
        sample["tokens"], sample["mask"] = self.tokenize_messages(
            sample.pop("messages"), add_eos=not inference
        )
        return sample

    def encode(
        self,
        text: str,
        add_bos: bool = True,
        add_eos: bool = True,
        *,
        continuation: bool = False,
        parse_special: bool = False,
    ) -> list[int]:
        """Return the ids of `text`, exactly those of the reference, between BOS and EOS where asked.

        Args:
            text: any text; special tokens written out in it stay text unless `parse_special`.
            add_bos: put BOS first (never done by a tokenizer whose model has no use for one, and never twice).
            add_eos: put EOS last. Leave it out of a prompt that a model shall continue.
            continuation: `text` goes on where other text ended, so no space is added before it and no BOS:
                the ids of a prompt and of its continuation together decode to the two texts joined.
            parse_special: special tokens written out in `text` become their ids. For text you wrote yourself.

        Raises:
            TokenizerError: the text holds a lone surrogate, which no UTF-8 can hold, or is none.
        """
        check_text(text)
        ids = self._encode_text(text, continuation, parse_special)
        if add_bos and not continuation and tuple(ids[: len(self.bos_ids)]) != self.bos_ids:
            ids = [*self.bos_ids, *ids]
        if add_eos:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Return the text of `ids`; invalid bytes become U+FFFD.

        Args:
            ids: token ids; the space that `encode` puts before a text is taken off again.
            skip_special: leave special tokens out; otherwise they are written as their names.

        Raises:
            TokenizerError: an id lies outside the vocabulary.
        """
        return self._decode_ids(self._checked_ids(ids), skip_special)

    def encode_pieces(self, pieces: Sequence[str | int]) -> list[int]:
        """Return the ids of texts with special tokens between them, without BOS or EOS.

        The ids are those of the whole string in which the special tokens are written out, but nothing inside
        of a text becomes special.

        Args:
            pieces: texts, and ids of special tokens.

        Raises:
            TokenizerError: a text cannot be encoded, or an id is none of this tokenizer.
        """
        return self.encode_pieces_with_spans(pieces)[0]

    def encode_pieces_with_spans(self, pieces: Sequence[str | int]) -> tuple[list[int], list[Span]]:
        """Return the ids of `encode_pieces`, and for each which characters [start, end) it stands for.

        Positions count characters of all pieces written one after the other, a special token as its text. A
        token that is a part of a character gets the span of the whole character.
        """
        return self._encode_joined(list(self._joined(pieces)))

    def tokenize_messages(
        self, messages: Sequence[Message], add_eos: bool = True
    ) -> tuple[list[int], list[bool]]:
        """Return the ids of a conversation and, for each, whether it is masked (not trained on).

        The conversation is written with `prompt_template`; without one, as the family of the builder does; without
        that, with the model's own chat template; else plainly, one BOS and one EOS around each pair of turns. At
        most `max_seq_len` tokens come back; a cut conversation has no EOS.
        """
        from tune.tokenizers.chat_template import tokenize_conversation

        template = self.prompt_template or self.family_template or self.chat_template
        template = template or get_prompt_template("plain")
        tokens, mask = tokenize_conversation(self, template, messages, add_eos)
        return tokens[: self.max_seq_len], mask[: self.max_seq_len]

    def apply_chat_template(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> str | list[int]:
        """Return a conversation as the model reads it, as ids or as text.

        Args:
            messages: `Message`s, or mappings with `role` and `content`.
            add_generation_prompt: end where the assistant's next answer starts.
            tokenize: give ids; otherwise the text.
            tools: what the assistant may call, for templates that know tools.
            **variables: further names that the model's chat template reads.

        Raises:
            TokenizerError: there is no template, or it refuses the conversation.
        """
        from tune.tokenizers.chat_template import apply_chat_template

        return apply_chat_template(
            self,
            messages,
            add_generation_prompt=add_generation_prompt,
            tokenize=tokenize,
            tools=tools,
            **variables,
        )

    def files(self) -> list[Path]:
        """Return the files that make this tokenizer up, to be copied beside a saved model."""
        side_files = [self.path.parent / name for name in SIDE_FILES]
        return [self.path, *(file for file in side_files if file.is_file() and file != self.path)]

    def fingerprint(self) -> str:
        """Return a short text that changes when the ids that it gives may do, or what templates read of it."""
        digest = hashlib.sha256(self._content())
        digest.update(
            repr(
                (
                    sorted(self.special_tokens.items()),
                    sorted(self.special_token_names.items()),
                    (self.vocab_size, self.bos_id, self.eos_id, self.bos_ids, self.stop_ids),
                )
            ).encode()
        )
        return digest.hexdigest()

    @abstractmethod
    def _content(self) -> bytes:
        """Return what decides about the ids of a text, beside the special tokens."""

    @abstractmethod
    def write_settings(self, directory: Path) -> None:
        """Write what other tools need to know of it beside a saved model, where that does not stand there yet."""

    @abstractmethod
    def token(self, token_id: int) -> str:
        """Return the token as it stands in the vocabulary, such as "▁the" or "<0x0A>"."""

    @abstractmethod
    def token_id(self, token: str) -> int | None:
        """Return the id of a token of the vocabulary or of an added one, None where there is none."""

    def waits_for_next(self, token_id: int) -> bool:
        """Return whether the text of a token may still change with the one after it."""
        return False

    @abstractmethod
    def _encode_text(self, text: str, continuation: bool, parse_special: bool) -> list[int]: ...

    @abstractmethod
    def _decode_ids(self, ids: list[int], skip_special: bool) -> str: ...

    @abstractmethod
    def _encode_joined(self, pieces: list[str | int]) -> tuple[list[int], list[Span]]: ...

    def _split_at_special(self, text: str) -> list[str | int]:
        """Return a text as pieces: the special tokens written out in it as their ids."""
        names = sorted(filter(None, self.special_tokens), key=len, reverse=True)
        if not names:
            return [text]
        parts = re.split(f"({'|'.join(map(re.escape, names))})", text)
        return [self.special_tokens.get(part, part) for part in parts if part]

    def _checked_ids(self, ids: Sequence[int]) -> list[int]:
        checked = [int(token_id) for token_id in ids]
        if checked and (min(checked) < 0 or max(checked) >= self.vocab_size):
            wrong = next(token_id for token_id in checked if not 0 <= token_id < self.vocab_size)
            raise TokenizerError(
                f"token id {wrong} cannot be decoded: {self.path} holds {self.vocab_size} ids, "
                f"0 to {self.vocab_size - 1}. Does the tokenizer belong to the model?"
            )
        return checked

    def _joined(self, pieces: Sequence[str | int]) -> Iterator[str | int]:
        """Yield the pieces with neighbouring texts joined: their border is none for the reference."""
        if isinstance(pieces, str):
            raise TokenizerError("encode_pieces takes a list of texts and ids, and one text came")
        text = ""
        for piece in pieces:
            if isinstance(piece, int) and not isinstance(piece, bool):
                if text:
                    yield text
                text = ""
                yield self._checked_ids([piece])[0]
            else:
                text += check_text(piece)
        if text:
            yield text


def check_text(text: object) -> str:
    """Return a text once it is clear that it is one, and that UTF-8 can hold it.

    Raises:
        TokenizerError: it is not.
    """
    if not isinstance(text, str):
        raise TokenizerError(f"encode takes one text, and a {type(text).__name__} came")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        position, char = error.start, text[error.start]
        context = ascii(text[max(0, position - 20) : position + 20])
        raise TokenizerError(
            f"character {position} of a text is the lone surrogate {char!a}, half of a character that "
            f"UTF-8 cannot hold, in {context}; repair the text where it comes from"
        ) from error
    return text
