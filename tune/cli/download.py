"""`tune download`: a model from the hub, whole, verified, and what to type next."""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tune.cli.arguments import Command, Given, Option, UsageError
from tune.cli.catalogue import find_recipe, list_configs
from tune.cli.terminal import columns, file_lines, format_size, say
from tune.config.diagnostics import printable
from tune.errors import HubError
from tune.hub.short_names import SHORT_NAMES, repository_of
from tune.utils.paths import expand_path

if TYPE_CHECKING:
    from tune.hub.listing import RemoteFile, Repository
    from tune.hub.selection import Selection

CHECKPOINTS = "checkpoints"


def run(given: Given) -> int:
    """Download a model and print its files and the next command."""
    (name,) = given.operands
    token, to, revision = given.one("hf_token"), given.one("output_dir"), given.one("revision")
    source = given.one("source")
    if source is not None and source.casefold() != "huggingface":
        raise UsageError(
            f"--source {source}: tune downloads from the Hugging Face hub only. Fetch the model with that site's own "
            "tool, then give its folder as model_checkpoint"
        )
    if {"convert", "no_convert"} <= given.switches:
        raise UsageError("--convert and --no-convert exclude each other; give one")
    try:
        repo, own_revision = repository_of(name, os.environ.get("HF_ENDPOINT", ""))
    except HubError as error:
        raise UsageError(str(error)) from error

    from tune.hub.download import download
    from tune.hub.listing import look_up
    from tune.hub.selection import select_files
    from tune.utils import get_logger
    from tune.utils.hub_access import connect

    get_logger("INFO")
    folder = expand_path(to) if to else Path(CHECKPOINTS) / repo.rpartition("/")[2]
    hub = connect(token)
    repository = look_up(hub, repo, own_revision if revision is None else revision)
    selection = select_files(repository, given.all("ignore_patterns") or None)
    total = sum(file.size for file in selection.files)
    size, shown = f"{len(selection.files)} files, {format_size(total)}", printable(str(folder))
    say(f"{repository.name} (commit {repository.commit[:7]}): {size}, into {shown}\n", sys.stderr)
    tell = file_lines(len(selection.files))

    def finished(file: RemoteFile, fetched: bool) -> None:
        if not sys.stderr.isatty():  # where it is one, the library shows a bar for each file
            tell(f"{file.name} ({format_size(file.size)}{'' if fetched else ', was there'})")

    try:
        fetched = download(hub, repository, selection.files, folder, finished)
    except KeyboardInterrupt:
        say("\nStopped. What has arrived is kept; the same command goes on from there.", sys.stderr)
        raise
    rows = [(printable(file.name), format_size(file.size)) for file in selection.files]
    new = "" if fetched == total else f", {format_size(fetched)} of them new" if fetched else ", nothing new"
    say(f"{repository.name} is in {shown}:\n{columns(rows)}\n  {size}{new}, all verified\n")
    if selection.skipped:
        names = ", ".join(printable(file.name) for file in selection.skipped[:3])
        more = f" and {len(selection.skipped) - 3} more" if len(selection.skipped) > 3 else ""
        left = format_size(sum(file.size for file in selection.skipped))
        say(f"  left on the hub: {names}{more} ({left})\n")
    model = folder / "original" if selection.layout == "meta_original" else folder
    if "convert" in given.switches:
        model = _convert(model, folder, selection)
    say(_next_steps(repository, selection, model))
    return 0


def _convert(model: Path, folder: Path, selection: Selection) -> Path:
    """Convert the downloaded weights to Hugging Face safetensors beside them; return the folder to use."""
    if selection.layout in ("safetensors", "adapter", None):
        say("Nothing to convert: there are no weights but Hugging Face safetensors.\n")
        return model
    from tune.cli.convert_ckpt import run as convert

    beside = folder if folder.name else folder.resolve()
    target = beside.with_name(f"{folder.resolve().name}-safetensors")
    convert(Given(operands=[str(model), str(target)]))
    return target


def _next_steps(repository: Repository, selection: Selection, model: Path) -> str:
    if selection.layout is None:
        return ""
    if selection.layout == "adapter":
        return "This is an adapter: its adapter_config.json names the model it belongs to.\n"
    shown = shlex.quote(str(model))
    name = repository.name.rpartition("/")[2]
    config = _config_for(name)
    train = (
        f"tune run full_finetune --config {config} model_checkpoint={shown}"
        if config
        else f"tune run full_finetune model=auto model_checkpoint={shown} dataset=alpaca lr=2e-5 output_dir=out/{name}"
    )
    return f'Next:\n  {train}\n  tune run generate model_checkpoint={shown} prompt="Once upon a time"\n'


def _config_for(name: str) -> str | None:
    """Return the shipped config for full fine-tuning that expects this model, or None."""
    wanted = re.compile(rf"^model_checkpoint: {CHECKPOINTS}/{re.escape(name)} *(#.*)?$", re.MULTILINE)
    found = [
        config.name
        for config in list_configs()
        if (recipe := find_recipe(config.recipe or "")) is not None and recipe.name == "full_finetune"
        if wanted.search(config.file.read_text(encoding="utf-8"))
    ]
    # One of a family's folder, the plainest of them, goes before a historic name.
    return min(found, key=lambda found_name: ("/" not in found_name, len(found_name)), default=None)


COMMAND = Command(
    name="download",
    summary="Download a model from the hub.",
    description=(
        "Downloads a model from the Hugging Face hub into a folder that every recipe takes as model_checkpoint. What "
        "is complete is kept, what was interrupted goes on, and every file is verified against the hub's checksum.\n\n"
        "One copy of the weights is fetched: safetensors if there are any, else pytorch_model*.bin, else Meta's "
        "consolidated.*.pth. Files of other programs and code are left out, and nothing that is fetched is run.\n\n"
        "Gated models (Llama, Gemma) need an account that accepted their terms, and its token: --hf-token, the "
        "environment variable HF_TOKEN, or once for all `hf auth login`."
    ),
    examples=(
        ("tune download llama3.2-1b", "by a short name, into checkpoints/Llama-3.2-1B"),
        (
            "tune download Qwen/Qwen3-4B --output-dir /data/qwen",
            "any repository, into a folder of your choice",
        ),
        ('tune download llama3-8b --ignore-patterns "*.safetensors"', "Meta's own layout instead"),
        ("tune download olmo2-1b --revision main", "a branch, a tag or a commit"),
    ),
    run=run,
    operands=(("MODEL", "owner/name on the hub, the address of its page, or a short name."),),
    options=(
        Option(("--output-dir",), f"Folder to write to; {CHECKPOINTS}/NAME if left out.", "DIR"),
        Option(("--hf-token",), "Access token; better in HF_TOKEN, where no process list shows it.", "TOKEN"),
        Option(
            ("--ignore-patterns",),
            'Files not to fetch, instead of those left out by default; "" fetches all (repeatable).',
            "PATTERN",
            many=True,
            greedy=True,
            may_be_empty=True,
        ),
        Option(("--revision",), "Branch, tag or commit; main if left out.", "REV"),
        Option(
            ("--convert",), "Also convert other layouts to Hugging Face safetensors, beside the download."
        ),
        Option(("--no-convert",), "Keep the weights as they are, which every recipe reads (the default)."),
        Option(("--source",), "Where from: huggingface is the only one.", "SITE"),
    ),
    lists=(("short names:", tuple((family, ", ".join(names)) for family, names in SHORT_NAMES.items())),),
)
