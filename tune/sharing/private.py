"""What of a run is private: paths, names of people and machines, tokens, and what its owner lists."""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from tune.config.nodes import MAX_WEIGHT
from tune.errors import ConfigError
from tune.sharing.redaction import Private, placeholder
from tune.utils.paths import BUNDLED_PREFIX, get_recipes_dir
from tune.utils.secret_masking import is_secret_name

__all__ = ["Leaf", "is_private", "is_telling", "private_texts", "read_leaves", "replace_leaves"]

MAX_CONFIG_BYTES = 2_000_000
_MAX_KEY = 1000
# Words of a key whose value is a path, or the name of somebody.
_PATH_WORDS = frozenset(
    (
        "dir",
        "dirs",
        "directory",
        "folder",
        "path",
        "paths",
        "file",
        "files",
        "filename",
        "checkpoint",
        "source",
    )
    + ("root", "cache", "location", "home", "uri", "url")
)
_NAME_WORDS = frozenset(
    (
        "user",
        "username",
        "owner",
        "author",
        "entity",
        "team",
        "org",
        "organization",
        "organisation",
        "account",
    )
    + ("email", "host", "hostname")
)
_LOOKS_LIKE_PATH = re.compile(r"(?:[/~]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|file:)")
_BETWEEN_WORDS = re.compile(r"[\s'\"&<>(),;]+")
_TELLING = re.compile(r"^(?!step_\d+$).*[^\W\d]", re.DOTALL)
# Names that belong to nobody, and folders that everybody has.
_NOBODY = frozenset(
    (
        "root",
        "user",
        "users",
        "admin",
        "ubuntu",
        "debian",
        "localhost",
        "runner",
        "default",
        "nobody",
        "jovyan",
    )
)
_COMMON = frozenset(
    ("home", "users", "mnt", "data", "datasets", "tmp", "temp", "var", "usr", "opt", "srv", "root", "work")
    + (
        "workspace",
        "projects",
        "project",
        "src",
        "out",
        "outputs",
        "output",
        "run",
        "runs",
        "model",
        "models",
    )
    + (
        "checkpoint",
        "checkpoints",
        "latest",
        "best",
        "lib",
        "lib64",
        "bin",
        "etc",
        "dev",
        "proc",
        "media",
        "volumes",
    )
    + (
        "scratch",
        "share",
        "shared",
        "train",
        "test",
        "val",
        "valid",
        "validation",
        "tune",
        "recipes",
        "configs",
    )
    + (
        "config",
        "python",
        "cache",
        "step",
        "adapter",
        "local",
        "site-packages",
        "private",
        "folders",
        "content",
    )
    + ("kaggle", "config.yaml", "mine", "mine.py", "pytest")
)
_MIN_WORD = 3
_PATHS = re.compile(r"(?<![\w.:/])(?:~|\.{0,2})/[^\s\"'=:,;()]+")
_HOMES = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\+Users\\+)([^/\\\s:\"'<>|*?]+)")


@dataclass(frozen=True)
class Leaf:
    """One value of a config.

    Args:
        key: its dotted name.
        value: its text.
        start, end: where it stands in the file.
    """

    key: str
    value: str
    start: int
    end: int


def read_leaves(text: str) -> list[Leaf]:
    """Return each value of a config's text that is no mapping and no list, in the order of the file.

    Raises:
        ConfigError: it is no YAML, or too large (with its aliases written out) or too deep for a config.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"the config has {len(text):,} characters: that is no config")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        nodes = list(islice(_nodes(root, ""), MAX_WEIGHT + 1))
    except yaml.YAMLError as error:
        raise ConfigError(f"the config is no YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ConfigError("the config is nested too deeply") from error
    if len(nodes) > MAX_WEIGHT:
        raise ConfigError(f"with its aliases written out the config holds more than {MAX_WEIGHT:,} values")
    leaves = [
        Leaf(key, str(node.value), node.start_mark.index, node.end_mark.index)
        for key, node in nodes
        if isinstance(node, yaml.ScalarNode)
    ]
    return sorted(leaves, key=lambda leaf: leaf.start)


def _nodes(node: yaml.Node | None, key: str) -> Iterator[tuple[str, yaml.Node | None]]:
    if len(key) > _MAX_KEY:
        raise ConfigError(f"a key of the config has more than {_MAX_KEY:,} characters")
    yield key, node
    children = node.value if isinstance(node, yaml.MappingNode | yaml.SequenceNode) else ()
    for number, child in enumerate(children):
        name, inner = (child[0].value, child[1]) if isinstance(child, tuple) else (number, child)
        yield from _nodes(inner, f"{key}.{name}" if key else str(name))


def replace_leaves(text: str, leaves: Sequence[Leaf]) -> str:
    """Return a config's text with a placeholder for each of `leaves`."""
    places = {leaf.start: leaf for leaf in leaves}  # two names may stand for one place
    for start, leaf in sorted(places.items(), reverse=True):
        line_end = "\n" if text[start : leaf.end].endswith("\n") else ""
        text = text[:start] + placeholder(leaf.key) + line_end + text[leaf.end :]
    return text


def is_private(leaf: Leaf, listed: Sequence[str] = ()) -> bool:
    """Tell whether a value is a path, somebody's name or a token, by its key or its looks, or is listed by its key."""
    if any(leaf.key == key or leaf.key.startswith(f"{key}.") for key in listed):
        return True
    last = [part for part in leaf.key.split(".") if not part.isdigit()][-1:]
    if leaf.value in ("", "null", "~", "true", "false") or last in ([], ["_component_"]):
        return False
    if leaf.value.startswith(BUNDLED_PREFIX):
        return False
    words = set(re.split(r"[^a-z0-9]+", "".join(last).lower()))
    if is_secret_name(leaf.key):
        return True
    if _is_number(leaf.value):
        return False
    return bool(words & (_PATH_WORDS | _NAME_WORDS)) or _LOOKS_LIKE_PATH.match(leaf.value) is not None


def private_texts(
    leaves: Sequence[Leaf],
    private: Sequence[Leaf],
    record: dict[str, Any],
    folder: Path,
    paths: Iterable[str] = (),
) -> Iterator[Private]:
    """Yield every text that goes: the private values of a config, of a path its other forms and parts, too; and what
    tells where the run took place, or where it is shared from.

    Args:
        leaves: all values of the config; a word that one which stays needs is none of these texts by itself.
        private: those that go.
        record: the run's run.json.
        folder: of the run.
        paths: of what the config does not name, such as the data of an evaluation.
    """
    used = {word for leaf in leaves if leaf not in private for word in _words(leaf.value)}
    keys = {word for leaf in leaves for word in _words(leaf.key)}
    used |= keys
    yield from _of_surroundings(record, folder, keys, used)
    for path in paths:
        is_path = "/" in path or os.sep in path or re.search(r"\.\w{1,8}$", path)
        if is_path and not path.startswith(BUNDLED_PREFIX):
            yield from _of_path(path, "path", used)
    for leaf in private:
        if not is_telling(leaf):
            continue  # beside its key alone
        is_word = len(leaf.value) < 20 and not re.search(r"[/\\@:]", leaf.value)
        if not is_word or leaf.value.lower() not in used | _COMMON | _shipped_words():
            yield Private(leaf.value, leaf.key, is_word)
        if not is_secret_name(leaf.key) and ("/" in leaf.value or os.sep in leaf.value):
            yield from _of_path(leaf.value, leaf.key, used)


def is_telling(leaf: Leaf) -> bool:
    """Tell whether a value says something wherever it stands, as a path does, and a number does not."""
    return leaf.value not in ("", "null", "~", "true", "false") and not _is_number(leaf.value)


def _of_path(path: str, name: str, used: set[str]) -> Iterator[Private]:
    """Yield the forms of a path: absolute, resolved, the folders it lies in, and each name in it that tells something.

    Args:
        path: as it was written.
        name: what is said in its place.
        used: names that mean something else, too, and stay where they stand alone.
    """
    forms = [path.removeprefix("file://")]
    with suppress(OSError, ValueError, RuntimeError):
        expanded = os.path.expanduser(forms[0])
        forms += [expanded, os.path.abspath(expanded), os.path.realpath(expanded)]
    known = used | _COMMON | _shipped_words()
    for form in dict.fromkeys(forms):
        if form.count("/") + form.count("\\") > form.startswith("/"):  # /tmp says nothing
            yield Private(form, name)
        parts = re.split(r"[/\\]+", form)
        if form.startswith("/"):
            for length in range(len(parts) - 1, 2, -1):
                yield Private("/".join(parts[:length]), "path")
        for part in parts:
            for word in (part, re.sub(r"\.\w{1,8}$", "", part), *_BETWEEN_WORDS.split(part)):
                if len(word) >= _MIN_WORD and word.lower() not in known and _TELLING.search(word):
                    yield Private(word, "path", is_word=True)


def _of_surroundings(
    record: dict[str, Any], folder: Path, keys: set[str], used: set[str]
) -> Iterator[Private]:
    """Yield the names of people and machines, and the folders, of the run and of this process."""
    nobody = _NOBODY | _shipped_words() | keys
    told = [text for text in _texts(record) if "/" in text or "\\" in text]
    host = record.get("host")
    hosts = [platform.node(), host.get("name") if isinstance(host, dict) else None]
    hosts += [each.partition(".")[0] for each in hosts if isinstance(each, str)]
    users = [os.environ.get("USER"), os.environ.get("LOGNAME")]
    with suppress(OSError, KeyError, ImportError):
        users.append(getpass.getuser())
    users += [name for text in told for name in _HOMES.findall(text)]
    for kind, names in (("host", hosts), ("user", users)):
        for name in dict.fromkeys(names):
            if isinstance(name, str) and len(name) > 1 and name.lower() not in nobody:
                yield Private(name, kind, is_word=True)
    places = [str(folder.absolute()), os.path.realpath(folder), os.getcwd(), str(Path.home())]
    places += [str(get_recipes_dir().parent)]
    shipped = str(get_recipes_dir())  # what lies in there tells nothing but its name
    places += [word for text in told for word in _PATHS.findall(text) if not word.startswith(shipped)]
    for place in dict.fromkeys(places):
        if place.strip("./~"):
            yield from _of_path(place, "path", used)


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a value as JSON has it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _words(text: str) -> set[str]:
    lowered = text.lower()
    return {lowered, *re.split(r"[^\w-]+", lowered), *re.split(r"[^a-z0-9]+", lowered)}


@lru_cache(maxsize=1)
def _shipped_words() -> frozenset[str]:
    """Return the names that come with tune, in lower case: they tell nothing of anybody."""
    found = {
        word
        for path in get_recipes_dir().rglob("*")
        if path.suffix in ("", ".py", ".yaml", ".jsonl")
        for word in (path.name.lower(), path.stem.lower())
    }
    return frozenset(found) | {"loss", "model", "step", "data", "train", "epoch", "torch", "cpu", "cuda"}


def _is_number(text: str) -> bool:
    with suppress(ValueError):
        float(text.replace("_", ""))
        return True
    return False
