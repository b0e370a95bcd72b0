"""Variables of the environment in a configuration: `${oc.env:HOME}`, `${oc.env:RUN,default}`.

What they stand for goes into the run's config.yaml, its metrics and its file names, and from there to others. So those
that hold secrets are refused, by their name and by what they hold.
"""

from __future__ import annotations

import os
import re

from tune.config.diagnostics import DEFAULT, quote
from tune.config.nodes import Scalar

VARIABLE_PREFIX = "oc.env:"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_SECRET_NAME = re.compile(
    r"token|secret|passw|passphrase|credential|cookie|private|signature|auth(?!or)|session_?(?:key|token|cookie)"
    r"|api_?key|access_?key|(?:^|_)key(?:$|_|s$)|(?:^|_)pass(?:$|_)|_pwd$|_pat$",
    re.IGNORECASE,
)
_SECRET_VALUE = re.compile(
    r"(?:hf_|sk-|gh[pousr]_|github_pat_|glpat-|xox[a-z]-|AKIA|eyJ)[A-Za-z0-9_.-]{12,}"
    r"|://[^/@\s]*:[^/@\s]*@|-----BEGIN|\b[0-9a-f]{40}\b"
)
_SHORTEST_SECRET = 8


def is_set(name: str) -> bool:
    """Tell whether `name` is a variable that a configuration may read, and that is set."""
    return _NAME.match(name) is not None and name in os.environ and not _is_secret(name, os.environ[name])


def read_variable(reference: str) -> Scalar | tuple[str, str]:
    """Return what `oc.env:NAME` or `oc.env:NAME,default` stands for; or a code and a message, why it does not.

    A default is read as a plain value of the file; what the environment holds is typed by its place.
    """
    name, comma, default = reference.removeprefix(VARIABLE_PREFIX).partition(",")
    name = name.strip()
    if _NAME.match(name) is None:
        return (
            "bad-reference",
            f"${{{VARIABLE_PREFIX}NAME}} reads a variable, and {quote(name)} is no name of one",
        )
    value = os.environ.get(name)
    if _is_secret(name, value or ""):
        return "secret-variable", (
            f"${{{VARIABLE_PREFIX}{name}}} may be a secret, and what a configuration reads is written into the run's "
            "files and shared with them; tools that need it read the variable themselves"
        )
    if value is None:
        if comma:
            return Scalar(DEFAULT, default.strip())
        return "dangling-reference", (
            f"the environment has no variable {name}; ${{{VARIABLE_PREFIX}{name},VALUE}} says what stands for it then"
        )
    if not value.isprintable():
        return "bad-reference", f"the variable {name} holds what is no printable text"
    return Scalar(DEFAULT, value, "verbatim")


def _is_secret(name: str, value: str) -> bool:
    if _SECRET_NAME.search(name) or _SECRET_VALUE.search(value):
        return True
    secrets = (held for other, held in os.environ.items() if _SECRET_NAME.search(other))
    return any(len(held) >= _SHORTEST_SECRET and held in value for held in secrets)
