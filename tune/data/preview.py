"""Examples as the model reads them: which tokens are learnt, which are special, and where documents begin."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from tune.data.labels import CROSS_ENTROPY_IGNORE_IDX
from tune.tokenizers.stream import StreamDecoder
from tune.utils.escape import escape_invisible

if TYPE_CHECKING:
    from tune.tokenizers.protocol import Tokenizer

# Return a text as a terminal shows tokens of the kind of this one.
Paint = Callable[[str, "PreviewToken"], str]
# Marks of plain text; where they stand in a text they are spelt out, so that a mark is always one.
LEARNT, SPECIAL = "⟦⟧", "⟨⟩"
LINE_END, CUT = "⏎", "✂"
_MARKS = LEARNT + SPECIAL + LINE_END + CUT
# Tokens of an example that are printed; the middle of a longer one is left out.
_SHOWN_FIRST, _SHOWN_LAST = 3000, 1000


@dataclass(frozen=True)
class PreviewToken:
    """One token of an example.

    Args:
        token_id: its id.
        text: what it adds to the text; "" for all but the last token of a character, and for an id without a text.
        is_learnt: whether it is a target.
        weight: what its loss is multiplied by; 0 where it is not learnt.
        is_special: whether it is a special token, and not letters that look like one.
        document: number of the document it belongs to, from 0; above 0 only where documents are packed.
    """

    token_id: int
    text: str
    is_learnt: bool
    weight: float
    is_special: bool
    document: int = 0


def preview_example(tokenizer: Tokenizer, example: Mapping[str, Sequence[int]]) -> list[tuple[str, bool]]:
    """Return an example as runs of text, each with whether it has labels.

    The runs joined are the whole text, special tokens written out. A character whose bytes are partly
    learnt belongs to the later run.

    Args:
        tokenizer: the one that made the example.
        example: `tokens` and `labels`, as datasets give them.
    """
    pairs = zip(preview_tokens(tokenizer, example), example["labels"], strict=True)
    runs = groupby(pairs, key=lambda pair: pair[1] != CROSS_ENTROPY_IGNORE_IDX)
    return [("".join(token.text for token, _ in run), is_learnt) for is_learnt, run in runs]


def preview_tokens(tokenizer: Tokenizer, example: Mapping[str, Any]) -> list[PreviewToken]:
    """Return what each token of an example is; their texts joined are the whole text, special tokens written out.

    Args:
        tokenizer: the one that made the example.
        example: `tokens` and `labels`, with `weights` and `input_pos` where datasets give them.
    """
    ids, labels = list(example["tokens"]), list(example["labels"])
    positions = example.get("input_pos")
    weights = example.get("weights")
    special = frozenset(tokenizer.special_tokens.values())
    decoder = StreamDecoder(tokenizer, skip_special=False)
    found: list[PreviewToken] = []
    document = 0
    for place, (token_id, label) in enumerate(zip(ids, labels, strict=True)):
        begins = place == 0 or (positions is not None and positions[place] == 0)
        if begins and place:
            _finish(decoder, found)
            document += 1
        # No token comes before the first, that could have it for its target.
        learnt = label != CROSS_ENTROPY_IGNORE_IDX and not begins
        weight = (1.0 if weights is None else float(weights[place])) if learnt else 0.0
        text = decoder.push(token_id)
        found.append(PreviewToken(token_id, text, learnt, weight, token_id in special, document))
    _finish(decoder, found)
    return found


def _finish(decoder: StreamDecoder, found: list[PreviewToken]) -> None:
    """Give the text of a character that never became whole to the last token."""
    if (rest := decoder.finish()) and found:
        last = found.pop()
        found.append(replace(last, text=last.text + rest))


def group_tokens(tokens: Iterable[PreviewToken]) -> Iterator[list[PreviewToken]]:
    """Yield neighbours that are alike in all but their text; each special token on its own."""
    alike: list[PreviewToken] = []
    for token in tokens:
        if alike and (token.is_special or _kind(token) != _kind(alike[-1])):
            yield alike
            alike = []
        alike.append(token)
    if alike:
        yield alike


def _kind(token: PreviewToken) -> tuple[bool, float, bool, int]:
    return token.is_learnt, token.weight, token.is_special, token.document


def text_of(tokens: Sequence[PreviewToken]) -> str:
    """Return the text of neighbours; an id that has none is named."""
    text = "".join(token.text for token in tokens)
    return text or (f"id {tokens[0].token_id}" if tokens[0].is_special or len(tokens) == 1 else "")


def elide(tokens: Sequence[PreviewToken]) -> tuple[Sequence[PreviewToken], int, Sequence[PreviewToken]]:
    """Return the tokens of an example that are printed: the first, how many are left out, the last."""
    left_out = len(tokens) - _SHOWN_FIRST - _SHOWN_LAST
    if left_out <= 0:
        return tokens, 0, []
    return tokens[:_SHOWN_FIRST], left_out, tokens[-_SHOWN_LAST:]


def format_example(
    tokens: Sequence[PreviewToken],
    cuts: Sequence[int] = (),
    paint: Paint | None = None,
    names: Sequence[str] = (),
) -> str:
    """Return an example as text: ⟦learnt⟧, ⟨special token⟩, ⏎ before each line end, a line between documents.

    A weight other than 1 stands first between the brackets: ⟦0.5| text⟧. What would disturb a terminal, or is not to be
    seen, is spelt out, and so are these marks themselves where they are part of the text.

    Args:
        tokens: of the example.
        cuts: for each document the tokens that it has lost at its end, marked by ✂; empty for none.
        paint: returns a text, all in one line, as a terminal shows tokens of that kind; it stands for the brackets.
        names: of the documents, where they have some; else they are numbered.
    """
    first, left_out, last = elide(tokens)
    lines = [f"--- {names[0]} ---"] if names else []
    lines.append(_format_tokens(first, cuts, paint, names))
    if left_out:
        lines += [f"... {left_out:,} tokens are not shown ...", _format_tokens(last, cuts, paint, names)]
    return "\n".join(lines) + (describe_cut(cuts, tokens[-1].document) if tokens else "")


def describe_cut(cuts: Sequence[int], document: int) -> str:
    """Return the mark at the end of a document that was cut; "" for a whole one."""
    num_cut = cuts[document] if document < len(cuts) else 0
    tokens = f"{num_cut:,} token{'s' * (num_cut != 1)}"
    return f"{CUT} {tokens} beyond max_seq_len {'is' if num_cut == 1 else 'are'} cut off" if num_cut else ""


def _format_tokens(
    tokens: Sequence[PreviewToken], cuts: Sequence[int], paint: Paint | None, names: Sequence[str] = ()
) -> str:
    parts: list[str] = []
    before: int | None = None
    for (is_learnt, weight, document), run in groupby(
        tokens, key=lambda t: (t.is_learnt, t.weight, t.document)
    ):
        if before is not None and document != before:
            name = names[document] if document < len(names) else f"document {document + 1}"
            parts.append(f"{describe_cut(cuts, before)}\n--- {name} ---\n")
        before = document
        inner = "".join(_format_alike(alike, paint) for alike in group_tokens(run))
        shown_weight = f"{weight:g}|" if is_learnt and weight != 1 else ""
        is_marked = is_learnt and paint is None
        parts.append(f"{LEARNT[0]}{shown_weight}{inner}{LEARNT[1]}" if is_marked else shown_weight + inner)
    return "".join(parts)


def _format_alike(alike: Sequence[PreviewToken], paint: Paint | None) -> str:
    text = spell_out(text_of(alike))
    if paint is not None:
        return "\n".join(paint(line, alike[0]) for line in text.split("\n"))
    return f"{SPECIAL[0]}{text}{SPECIAL[1]}" if alike[0].is_special else text


def spell_out(text: str) -> str:
    """Return text fit for a terminal: line ends are marked and kept, what is not to be seen is spelt out."""
    for mark in _MARKS:
        text = text.replace(mark, mark.encode("unicode_escape").decode())
    return f"{LINE_END}\n".join(map(escape_invisible, text.split("\n")))
