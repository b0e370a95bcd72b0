"""The `tokenizers` library's object behind a tokenizer.json, set up as the files beside it say.

The rules by which named and added tokens join it are those of transformers' AutoTokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune.errors import TokenizerError
from tune.tokenizers.detect_format import describe_mismatch
from tune.tokenizers.settings import AddedToken, TokenizerSettings, added_token, refuse_many_tokens

if TYPE_CHECKING:
    import tokenizers

Definition = dict[str, Any]

# More ids than this without a token, and the library takes minutes and gigabytes.
_LARGEST_GAP = 100_000


def build_backend(definition: Definition | str, path: Path) -> tokenizers.Tokenizer:
    """Return the library's tokenizer for the content of a tokenizer.json, without truncation or padding.

    Raises:
        TokenizerError: the library cannot make sense of it.
    """
    text = definition if isinstance(definition, str) else json.dumps(definition)
    backend = _parse(text, path)
    backend.no_truncation()
    backend.no_padding()
    return backend


def check_definition(definition: Definition, path: Path, content: bytes) -> None:
    """Check that a JSON object is a tokenizer.json.

    Raises:
        TokenizerError: it is JSON of another kind.
    """
    model = definition.get("model")
    if not isinstance(model, dict) or "vocab" not in model:
        raise TokenizerError(describe_mismatch("tokenizer.json", path, content))
    entries = definition.get("added_tokens")
    if entries is not None and not isinstance(entries, list):
        raise TokenizerError(f"{path}: added_tokens is a {type(entries).__name__}, expected a list")
    refuse_many_tokens(len(entries or ()), path)
    ids = model["vocab"].values() if isinstance(model["vocab"], dict) else ()
    largest = max((token_id for token_id in ids if isinstance(token_id, int)), default=0)
    if largest > len(ids) + _LARGEST_GAP:
        raise TokenizerError(
            f"{path}: {len(ids)} tokens have ids up to {largest}; no model has a vocabulary with so many left out"
        )
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    # The library cuts the prefix off unseen, and takes the process down where it is not there.
    if prefix and isinstance(prefix, str) and isinstance(merges, list):
        for merge in merges:
            right = merge.split(" ")[-1:] if isinstance(merge, str) else merge
            if not (isinstance(right, list) and right and str(right[-1]).startswith(prefix)):
                raise TokenizerError(
                    f"{path}: the merge {str(merge)[:40]} goes on without the continuing_subword_prefix {prefix!r}"
                )


def join_added_tokens(
    backend: tokenizers.Tokenizer, settings: TokenizerSettings, definition: Definition, path: Path
) -> None:
    """Add the tokens that the settings name to those of the definition, in the reference's order."""
    import tokenizers

    listed = dict(settings.added)
    if not settings.lists_all:
        for entry in definition.get("added_tokens") or ():
            token_id = entry.get("id") if isinstance(entry, dict) else None
            if isinstance(token_id, int):
                listed[token_id] = added_token(entry, f"{path}: added_tokens")
    named = [token for token in (*settings.names.values(), *settings.extra_special) if token is not None]
    names = {token.content for token in settings.names.values() if token is not None}
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    known |= {token.content for token in listed.values()}
    # A token that a setting names is special, whatever its own flag says.
    wanted = [
        replace(token, special=token.special or token.content in names) for _, token in sorted(listed.items())
    ]
    wanted += [token for token in named if token.content and token.content not in known]
    backend.add_tokens([tokenizers.AddedToken(token.content, **token.flags()) for token in wanted])


def drop_tokens_without_row(
    backend: tokenizers.Tokenizer, settings: TokenizerSettings, path: Path
) -> tuple[tokenizers.Tokenizer, dict[int, AddedToken]]:
    """Return a tokenizer without the added tokens for which the model's embedding has no row, and these by id."""
    added = backend.get_added_tokens_decoder()
    if all(map(settings.fits, added)):
        return backend, {}
    in_model = backend.get_vocab(with_added_tokens=False)
    definition = json.loads(backend.to_str())
    dropped = {
        token_id: as_added_token(token)
        for token_id, token in sorted(added.items())
        if not settings.fits(token_id) and token.content not in in_model
    }
    definition["added_tokens"] = [entry for entry in definition["added_tokens"] if entry["id"] not in dropped]
    return _parse(json.dumps(definition), path), dropped


def read_affixes(backend: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Return the special tokens that the post-processor puts before a text: a BOS, or nothing."""
    # A vocabulary need not hold any one letter; without a text BOS and EOS look alike.
    probes = ("a", " ", *(backend.decode([token_id]) for token_id in range(300)))
    probe = next((text for text in probes if encode_raw(backend, text).ids), "")
    with _explained("the post_processor of the tokenizer.json is damaged"):
        encoding = backend.encode(probe, add_special_tokens=True)
    num_before = 0
    while num_before < len(encoding.ids) and encoding.special_tokens_mask[num_before]:
        num_before += 1
    return tuple(encoding.ids[:num_before]) if num_before < len(encoding.ids) else ()


def encode_raw(backend: tokenizers.Tokenizer, text: str) -> tokenizers.Encoding:
    """Return what the library makes of a text, without BOS and EOS.

    Raises:
        TokenizerError: it fails, as models without an unknown token do on characters that they do not know.
    """
    with _explained(f"the tokenizer cannot encode {text[:40]!r}"):
        return backend.encode(text, add_special_tokens=False)


def without_prefix(definition: Definition) -> Definition:
    """Return a definition that puts nothing before a text: for text that goes on where other text ended."""
    return {
        **definition,
        "normalizer": _normalizer_without_prefix(definition.get("normalizer")),
        "pre_tokenizer": _splitter_without_prefix(definition.get("pre_tokenizer")),
    }


def without_special_pieces(definition: Definition, special: Collection[str], rename: str) -> Definition:
    """Return a definition whose model does not know the special tokens as pieces of text.

    Some models have them in the vocabulary like any word, and would find "</s>" in a text by themselves.

    Args:
        definition: of a tokenizer.json.
        special: texts of the special tokens.
        rename: characters of no text, put before the names to hide them.
    """
    model = dict(definition["model"])
    hidden = {name for name in special if name != model.get("unk_token")}
    vocab = model["vocab"]
    if isinstance(vocab, Mapping):
        in_model = hidden & set(vocab)
        model["vocab"] = {rename + name if name in hidden else name: i for name, i in vocab.items()}
    else:
        in_model = hidden & {name for name, _ in vocab}
        unknown = model.get("unk_id")
        model["vocab"] = [
            [rename + name if name in hidden and i != unknown else name, score]
            for i, (name, score) in enumerate(vocab)
        ]
    if "merges" in model:
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [
            [left, right] for left, right in pairs if not {left, right, left + right} & in_model
        ]
    added = [entry for entry in definition["added_tokens"] if entry["content"] not in in_model]
    return {**definition, "model": model, "added_tokens": added}


def uses(definition: Definition, part: str, kind: str) -> bool:
    """Return whether a part of the pipeline ("decoder", ...) is of a kind, or a sequence that holds it."""
    step = definition.get(part)
    if not isinstance(step, dict):
        return False
    inner = step.get("decoders") or step.get("normalizers") or step.get("pretokenizers") or ()
    return step.get("type") == kind or any(item.get("type") == kind for item in inner)


def as_added_token(token: tokenizers.AddedToken) -> AddedToken:
    """Return the library's added token as ours."""
    return AddedToken(
        token.content, token.special, token.lstrip, token.rstrip, token.single_word, token.normalized
    )


def _normalizer_without_prefix(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    if step.get("type") == "Sequence":
        kept = [_normalizer_without_prefix(inner) for inner in step.get("normalizers", ())]
        return {**step, "normalizers": [inner for inner in kept if inner is not None]}
    if step.get("type") == "Prepend":
        return None
    if step.get("type") == "Strip":
        return {**step, "strip_left": False}
    return step


def _splitter_without_prefix(step: Any) -> Any:
    if not isinstance(step, dict):
        return step
    if step.get("type") == "Sequence":
        inner = [_splitter_without_prefix(part) for part in step.get("pretokenizers", ())]
        return {**step, "pretokenizers": inner}
    if step.get("type") == "Metaspace":
        kept = {key: value for key, value in step.items() if key != "add_prefix_space"}
        return {**kept, "prepend_scheme": "never"}
    if step.get("type") == "ByteLevel":
        return {**step, "add_prefix_space": False}
    return step


def _parse(text: str, path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    library = f"the tokenizers library {tokenizers.__version__}"
    with _explained(f"{path} is no tokenizer.json that {library} can read"):
        return tokenizers.Tokenizer.from_str(text)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns the library's errors into ours: it raises nothing more precise than Exception, and panics of Rust."""
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: {error}") from error
