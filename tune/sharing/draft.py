"""A letter about a shared run: a file that a mail program opens as a draft. Nothing is sent."""

from __future__ import annotations

import re
from collections.abc import Sequence
from email.message import EmailMessage
from email.policy import SMTP
from pathlib import Path

from tune.errors import TuneError
from tune.sharing.bundle import Shared
from tune.sharing.readme import summarize_run
from tune.utils.escape import escape_control

__all__ = ["MAX_ATTACHED", "check_addresses", "write_draft"]

# Servers refuse much more; the letter itself takes a third on top.
MAX_ATTACHED = 15_000_000
_ADDRESS = re.compile(r"[A-Za-z0-9._%+'-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+\Z")


def check_addresses(addresses: Sequence[str]) -> None:
    """Raise TuneError where one is no address of a person."""
    for address in addresses:
        if not _ADDRESS.match(address):
            raise TuneError(f"{address!r} is no e-mail address")


def write_draft(shared: Shared, name: str, addresses: Sequence[str]) -> bytes:
    """Return a letter with the file attached, or, where that is too large, named.

    Args:
        shared: what is handed on, a zip.
        name: of its file.
        addresses: whom it is for.
    """
    name = escape_control(name)  # no header takes a line's end
    message = EmailMessage(policy=SMTP)
    message["To"] = ", ".join(addresses)
    message["Subject"] = f"A run of tune: {Path(name).stem}"
    message["X-Unsent"] = "1"  # mail programs open such a file to be edited and sent
    rows = [f"  {key}: {value}" for key, value in summarize_run(shared.record)]
    is_attached = shared.num_bytes <= MAX_ATTACHED
    told = (
        f"It is attached: {name}" if is_attached else f"It is too large to attach: please fetch {name} from"
    )
    lines = [
        "Hello,",
        "",
        "here is a run of mine.",
        "",
        *rows,
        "",
        told,
        "",
        "To run it again:",
        "",
        f"  tune run {name}",
    ]
    message.set_content("\n".join(lines) + "\n")
    if is_attached:
        message.add_attachment(shared.path.read_bytes(), maintype="application", subtype="zip", filename=name)
    return message.as_bytes()
