"""Which names a configuration may make this program import: judged by name, before anything is imported.

A config may come from a stranger, and a dotted path is enough to run any code. So only four packages are
allowed, in two of them only the parts whose purpose is to be configured, and everything else only after the
user has said ``--trust PACKAGE``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from tune.config.diagnostics import Diagnostic
from tune.errors import ConfigError

BUILT_IN_PACKAGES = ("tune", "torch", "torchao", "bitsandbytes")

# What is not listed here can read or write files, load pickles, start processes or open sockets
# (torch.load, torch.hub, torch.save, torch.utils.cpp_extension, tune.cli ...).
_OPEN_PARTS = {
    "tune": (
        "tune.models",
        "tune.modules",
        "tune.tokenizers",
        "tune.data",
        "tune.datasets",
        "tune.training",
        "tune.generation",
        "tune.evaluation.metrics",
    ),
    "torch": ("torch.nn", "torch.optim", "torch.profiler"),
    "torchao": ("torchao.optim", "torchao.prototype.low_bit_optim", "torchao.float8", "torchao.quantization"),
    "bitsandbytes": ("bitsandbytes.optim", "bitsandbytes.nn"),
}

# Only ASCII: Python compares identifiers after Unicode normalisation, a look-alike must not pass as another name.
_DOTTED_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*\Z")
_MAX_NAME_LENGTH = 300

_user_trusted: set[str] = set()


def is_dotted_name(name: str) -> bool:
    """Return whether `name` is a dotted path of plain ASCII identifiers."""
    return len(name) <= _MAX_NAME_LENGTH and _DOTTED_NAME.match(name) is not None


def lies_within(name: str, parts: Iterable[str]) -> bool:
    """Return whether dotted path `name` is one of `parts` or below one of them (whole parts are compared)."""
    return any(name == part or name.startswith(part + ".") for part in parts)


def parse_trust(values: Iterable[str]) -> tuple[str, ...]:
    """Return the packages that ``--trust`` values name; each value may list several, separated by commas.

    Raises:
        ConfigError: a value is not a package name.
    """
    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    for name in names:
        if not is_dotted_name(name):
            raise ConfigError(f"--trust takes the name of a Python package, such as my_package, not {name!r}")
    return tuple(dict.fromkeys(names))


def trust(*packages: str) -> None:
    """Allow configurations to name anything in `packages` for the rest of this process."""
    _user_trusted.update(parse_trust(packages))


def is_user_trusted(name: str) -> bool:
    """Return whether the user has trusted the package that `name` lies in."""
    return lies_within(name, _user_trusted)


def trusts_part_of(package: str) -> bool:
    """Return whether the user has trusted the top-level `package` or some part of it."""
    return any(trusted.split(".", 1)[0] == package for trusted in _user_trusted)


def judge_name(name: str) -> Diagnostic | None:
    """Return why a configuration may not name the dotted path `name`, or None where it may.

    Nothing is looked up or imported: the name alone is judged.
    """
    if not is_dotted_name(name):
        shown = name if len(name) <= 80 else name[:77] + "..."
        return Diagnostic(
            "bad-component-name", "", f"{shown!r} is not a dotted Python name such as torch.optim.AdamW"
        )
    parts = name.split(".")
    if any(part.startswith("__") for part in parts):
        return _untrusted(f"{name} reaches into Python's internals; name a class or function")
    if is_user_trusted(name):
        return None
    package = parts[0]
    if package not in BUILT_IN_PACKAGES:
        return _untrusted(
            f"{name} lies in the package {package}, which is not trusted: building it would run its code. "
            f"If you know who wrote it, add --trust {package}",
        )
    if any(part.startswith("_") for part in parts):
        return _untrusted(f"{name} is private to {package}; name a public class or function")
    return _judge_part(name, package)


def judge_definition(name: str, named_as: str) -> Diagnostic | None:
    """Return why the place where a component is really defined is not allowed, or None.

    A public name may be an import of something else: `name` is where the chain of imports ends, `named_as` what
    the configuration wrote. Private modules are fine here, that is where libraries keep their code.
    """
    if is_user_trusted(name) or is_user_trusted(named_as):
        return None  # the user vouches for whatever a trusted package hands on
    package = name.split(".", 1)[0]
    if package not in BUILT_IN_PACKAGES:
        return _untrusted(f"{named_as} is only an import of {name}, which is not trusted")
    return _judge_part(name, package)


def _untrusted(message: str) -> Diagnostic:
    return Diagnostic("untrusted-component", "", message)


def _judge_part(name: str, package: str) -> Diagnostic | None:
    open_parts = _OPEN_PARTS[package]
    if lies_within(name, open_parts):
        return None
    return _untrusted(
        f"{name} is not among the parts of {package} that a configuration may use ({', '.join(open_parts)}): "
        f"elsewhere in it live functions that read files or run code. If you are sure, add --trust {name}",
    )
