"""Writing a run as one folder or zip: its records, its recipe, a small adapter, and the list of their checksums."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tune
from tune.errors import ConfigError, TuneError
from tune.sharing.inputs import describe_inputs, own_modules
from tune.sharing.private import Leaf, is_private, is_telling, private_texts, read_leaves, replace_leaves
from tune.sharing.readme import describe_shared
from tune.sharing.redaction import Private, Redactor, placeholder
from tune.sharing.staging import MANIFEST, put_in_place, require_free, staging, write_zip
from tune.utils.paths import get_recipes_dir
from tune.utils.secret_masking import is_secret_name, mask_looks, mask_text

__all__ = ["MANIFEST", "MAX_BYTES", "Shared", "share_run"]

VERSION = 1
# More than this is no record of a run any more; who opens one refuses it.
MAX_BYTES = 1 << 30
MAX_ADAPTER_BYTES = 200_000_000
_RECORDS = (
    "run.json",
    "metrics.jsonl",
    "samples.jsonl",
    "console.log",
    "preview.txt",
)
_EVALUATIONS, _OF_AN_EVALUATION = "evaluations", ("scores.json", "answers.jsonl")
_EVALUATED = ("model", "against", "data")
_WEIGHTS = ".safetensors"
_ADAPTER_TEXTS = ("adapter_config.json", "README.md")


@dataclass
class Shared:
    """What was written.

    Args:
        path: the folder or zip.
        num_bytes: of all files in it.
        removed: what went of the config, by its key.
        counts: how often each private value was replaced, by its key or kind.
        left_out: what is not in it, and why.
        record: run.json as it is in it.
    """

    path: Path
    num_bytes: int = 0
    removed: list[Leaf] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    left_out: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)


def share_run(
    run: Path,
    target: Path,
    report: Callable[[Path], object],
    *,
    name: str,
    compress: bool = False,
    redact: bool = False,
    listed: Sequence[str] = (),
    force: bool = False,
    beside: Callable[[Shared], dict[str, bytes]] | None = None,
) -> Shared:
    """Write the records of a run into a new folder or zip; it is there whole, or not at all.

    Nothing that the run's config names is imported or called.

    Args:
        run: its folder.
        target: what to write.
        report: writes the page about the run whose folder it is given, into that.
        name: what the run is called in it.
        compress: write a zip.
        redact: leave out what is private.
        listed: keys of the config whose values are private, besides.
        force: replace what an earlier call has written there.
        beside: returns further files, to be written beside the target, from what the whole has become.

    Raises:
        ConfigError: a listed key is none of the config's.
        TuneError: it is no run, something else is in the way, or it cannot be written.
    """
    require_free(target, force)
    try:
        text = (run / "config.yaml").read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise TuneError(f"{run} has no config.yaml, so there is nothing that could run again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise TuneError(f"{run / 'config.yaml'} cannot be read: {error}") from error
    leaves = read_leaves(text)
    for key in listed:
        if not any(leaf.key == key or leaf.key.startswith(f"{key}.") for leaf in leaves):
            raise ConfigError(f"the run's config has no key {key!r}, whose value could be left out")
    try:
        with staging(target) as place:
            folder = place / name
            shared = _Writing(run, folder, text, leaves, redact, listed).write(report)
            staged = {target: folder}
            if compress:
                staged[target] = write_zip(folder, place / target.name)
                shared.num_bytes = staged[target].stat().st_size
            shared.path = staged[target]
            for file, content in (beside(shared) if beside else {}).items():
                (place / file).write_bytes(content)
                staged[target.parent / file] = place / file
            put_in_place(staged, place)
            shared.path = target
            return shared
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "; make room there, or write elsewhere with --to" if full else ""
        raise TuneError(f"{target} cannot be written: {error.strerror}{hint}") from error


class _Writing:
    """Fills the folder that is shared."""

    def __init__(
        self, run: Path, folder: Path, text: str, leaves: list[Leaf], redact: bool, listed: Sequence[str]
    ) -> None:
        self.run, self.folder, self.text = run, folder, text
        self.shared = Shared(folder)
        self.record = _read_record(run)
        # Tokens go in any case: nobody means to hand them on.
        self.shared.removed = gone = [
            leaf
            for leaf in leaves
            if leaf.value not in ("", "null", "~")
            and (is_private(leaf, listed) if redact else is_secret_name(leaf.key))
        ]
        paths = _evaluated(run) if redact else ()
        texts = list(private_texts(leaves, gone, self.record, run, paths)) if redact else []
        texts = texts or [Private(leaf.value, leaf.key) for leaf in gone]
        keys = [leaf.key for leaf in gone]
        keys += [leaf.key.rpartition(".")[2] for leaf in gone if not is_telling(leaf)]
        self.redactor = Redactor(texts, keys)
        self.redacts = redact
        self.inputs = describe_inputs(leaves)

    def write(self, report: Callable[[Path], object]) -> Shared:
        self.folder.mkdir()
        config = replace_leaves(self.text, self.shared.removed)
        (self.folder / "config.yaml").write_text(self._clear(config), encoding="utf-8")
        for source, name in self._find_records():
            if _is_plain(source):
                self._copy_record(source, self.folder / name)
        recipe = self._copy_recipe()
        self._copy_adapter()
        self.shared.record = record = _read_record(self.folder)
        report(self.folder)
        self._hide_place()
        manifest: dict[str, Any] = {
            "tune_share": VERSION,
            "tune": tune.__version__,
            "recipe": recipe,
            "redacted": [leaf.key for leaf in self.shared.removed],
            "inputs": self.inputs,
            "weights": self._weights(),
        }
        left_out = [self._clear(each) for each in self.shared.left_out]
        readme = describe_shared(self.folder.name, record, manifest, left_out, self.folder)
        (self.folder / "README.md").write_text(readme, encoding="utf-8")
        self._check()
        manifest["files"] = files = _list_files(self.folder)
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (self.folder / MANIFEST).write_text(text, encoding="utf-8", errors="backslashreplace")
        self.shared.num_bytes = sum(each["bytes"] for each in files.values())
        if self.shared.num_bytes > MAX_BYTES:
            largest = max(files, key=lambda name: int(files[name]["bytes"]))
            raise TuneError(
                f"the run's records have more than {MAX_BYTES:,} bytes, most of them in {largest}"
            )
        self.shared.counts = self.redactor.counts
        return self.shared

    def _clear(self, text: str) -> str:
        return mask_text(self.redactor.redact(text))

    def _find_records(self) -> Iterator[tuple[Path, str]]:
        """Yield the file of each record, and what it is called here."""
        for file in _RECORDS:
            yield self.run / file, file
        folder = self.run / _EVALUATIONS
        found = sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else ()
        for index, each in enumerate(each for each in found if each.is_dir() and not each.is_symlink()):
            name = str(index + 1) if self.redacts else each.name  # it tells the data's
            for file in _OF_AN_EVALUATION:
                yield each / file, f"{_EVALUATIONS}/{name}/{file}"

    def _copy_record(self, source: Path, target: Path) -> None:
        """Copy a record, a line at a time where it is lines: what is JSON keeps the names of its fields."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            source.open(encoding="utf-8", errors="replace") as lines,
            target.open("w", encoding="utf-8", errors="backslashreplace") as out,
        ):
            if source.suffix == ".json":
                out.write(self._clear_json(lines.read(), indent=1) + "\n")
                return
            for line in lines:
                is_json = source.suffix == ".jsonl"
                out.write(self._clear_json(line.rstrip("\n")) + "\n" if is_json else self._clear(line))

    def _clear_json(self, text: str, indent: int | None = None) -> str:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return self._clear(text)
        value = self.redactor.redact_json(value)
        if self.redacts and isinstance(value, dict):
            for holder, name in ((value.get("host"), "name"), (_git_of(value), "branch")):
                if isinstance(holder, dict) and holder.get(name):
                    holder[name] = placeholder(name if name == "branch" else "host")
            if "tune_evaluation" in value:  # where from is said nowhere in the config
                value |= {key: placeholder(key) for key in _EVALUATED if value.get(key)}
            elif "place" in value:  # of a row of such data
                number = re.search(r":\d+$", str(value["place"]))
                value["place"] = placeholder("data") + (number[0] if number else "")
        return json.dumps(value, indent=indent, ensure_ascii=False)

    def _copy_recipe(self) -> dict[str, Any]:
        """Copy the recipe's file, and the modules beside it that one of somebody's own imports; say what it is."""
        told = self.record.get("recipe")
        recorded = told if isinstance(told, dict) else {}
        stated = next((leaf.value for leaf in read_leaves(self.text) if leaf.key == "recipe"), "")
        file = Path(str(recorded.get("file") or get_recipes_dir() / f"{stated}.py"))
        if not _is_plain(file) or file.suffix != ".py":
            self.shared.left_out.append(f"the recipe: there is no file {file} any more")
            return {"file": None, "name": stated, "is_stock": False, "sha256": recorded.get("sha256")}
        found = hashlib.sha256(file.read_bytes()).hexdigest()
        if recorded.get("sha256") not in (None, found):
            self.shared.left_out.append(f"the recipe as it ran: {file} has changed since")
        shipped = get_recipes_dir() / file.name
        is_stock = _is_plain(shipped) and shipped.read_bytes() == file.read_bytes()
        (self.folder / "recipe").mkdir()
        name = (
            file.name
            if not self.redacts or is_stock
            else self._clear(file.stem).replace("(", "_").replace(")", "") + ".py"
        )
        for source, copied in (
            (file, name),
            *((each, each.name) for each in (() if is_stock else own_modules(file))),
        ):
            content = source.read_text(encoding="utf-8", errors="surrogateescape")
            content = content if is_stock else mask_looks(self.redactor.redact(content))
            (self.folder / "recipe" / copied).write_text(content, encoding="utf-8", errors="surrogateescape")
        return {
            "file": f"recipe/{name}",
            "name": file.stem if is_stock else name[:-3],
            "is_stock": is_stock,
            "sha256": found,
        }

    def _copy_adapter(self) -> None:
        adapter = self.run / "latest" / "adapter"
        if not adapter.is_dir():
            return
        files = [path for path in sorted(adapter.iterdir()) if _is_plain(path)]
        size = sum(path.stat().st_size for path in files)
        if size > MAX_ADAPTER_BYTES:
            self.shared.left_out.append(f"the adapter: it has {size:,} bytes; `tune upload` is for such")
            return
        if self.redacts and any(
            self.redactor.finds(path.read_bytes()) for path in files if path.suffix == _WEIGHTS
        ):
            self.shared.left_out.append("the adapter: its weight file holds a private text")
            return
        target = self.folder / "adapter"
        target.mkdir()
        for path in files:
            if path.name in _ADAPTER_TEXTS:
                text = path.read_text(encoding="utf-8", errors="replace")
                is_json = path.suffix == ".json"
                (target / path.name).write_text(
                    self._clear_json(text, 2) if is_json else self._clear(text), encoding="utf-8"
                )
            elif self.redactor.finds(path.read_bytes()):
                self.shared.left_out.append(f"adapter/{path.name}: it holds a private text")
            else:
                shutil.copyfile(path, target / path.name)

    def _weights(self) -> dict[str, str]:
        """Return the checksums of the newest saved step's weights, which a run that repeats this one ends with."""
        try:
            listed = json.loads((self.run / "latest" / MANIFEST).read_text(encoding="utf-8"))["files"]
            return {
                str(name): str(each["sha256"]) for name, each in listed.items() if name.endswith(_WEIGHTS)
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _hide_place(self) -> None:
        """Take the folder that the page was made in out of it: it is there for a moment only."""
        page = self.folder / "report.html"
        if page.is_file():
            text = page.read_text(encoding="utf-8").replace(str(self.folder), self.folder.name)
            page.write_text(text, encoding="utf-8")

    def _check(self) -> None:
        """Refuse to hand on what still holds a private text, whichever way it has come in."""
        for path in sorted(self.folder.rglob("*")):
            is_stock = path.parent.name == "recipe" and path.name in os.listdir(get_recipes_dir())
            if path.is_file() and not is_stock and self.redactor.finds(path.read_bytes()):
                raise TuneError(f"{path.name} would still hold a private text; nothing was written")


def _evaluated(run: Path) -> set[str]:
    """Return what models and data a run's evaluations name."""
    found = set()
    for file in (run / _EVALUATIONS).glob("*/scores.json"):
        with suppress(OSError, ValueError, RecursionError):
            told = json.loads(file.read_text(encoding="utf-8")) if _is_plain(file) else None
            found |= (
                {str(told[key]) for key in _EVALUATED if told.get(key)} if isinstance(told, dict) else set()
            )
    return found


def _read_record(folder: Path) -> dict[str, Any]:
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _git_of(record: dict[str, Any]) -> Any:
    recipe = record.get("recipe")
    return recipe.get("git") if isinstance(recipe, dict) else None


def _is_plain(path: Path) -> bool:
    """Tell whether there is a file; a link could bring in one of somebody else's."""
    return path.is_file() and not path.is_symlink()


def _list_files(folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    return files
