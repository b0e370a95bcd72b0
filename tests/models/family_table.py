"""The table of families in docs/models.md, made of what the tests run on: `make docs` writes it.

python tests/models/family_table.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cases import CASES
from larger_models import LARGER
from published_configs import PUBLISHED as SOME_PUBLISHED
from published_gemmas import PUBLISHED as GEMMAS_PUBLISHED
from published_gpt_oss import PUBLISHED as GPT_OSS_PUBLISHED
from published_lfm2 import PUBLISHED as LFM2_PUBLISHED
from published_llamas import PUBLISHED as LLAMAS_PUBLISHED
from published_muse_glimmer import PUBLISHED as MUSE_GLIMMER_PUBLISHED
from published_qwens import PUBLISHED as QWENS_PUBLISHED
from test_growing_texts import GROWING

from tune.config.component_check import list_components
from tune.config.instantiate import import_component
from tune.config.slots import MODEL
from tune.hub.short_names import SHORT_NAMES
from tune.models.builders import ModelBuilder
from tune.models.loading import all_families

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- families: `make docs` writes what follows -->\n", "<!-- end of families -->\n"
_SHOWN = 3  # short names of a family


class Row(NamedTuple):
    """A line of the table.

    Args:
        name: of the family, for people.
        modules: files of tune.models with its builders.
        cases: what the names of its cases begin with, in the tables of the tests.
        short_names: its sections in the list of names to download.
        since: the version that it was first proven in.
        apart: what sets it apart.
    """

    name: str
    modules: tuple[str, ...]
    cases: tuple[str, ...]
    short_names: tuple[str, ...]
    since: str
    apart: str


ROWS = (
    Row("Llama 2", ("llama2",), ("llama",), ("Llama 2",), "0.1.0", "Meta's layout, too"),
    Row(
        "Llama 3, 3.1, 3.2, 3.3",
        ("llama3", "llama3_1", "llama3_2", "llama3_3"),
        ("llama",),
        ("Llama 3", "Llama 3.1", "Llama 3.2", "Llama 3.3"),
        "0.1.0",
        "scaled rotary positions from 3.1 on; 3.2 is tied; Meta's layout, too",
    ),
    Row("Code Llama", ("code_llama2",), ("llama",), ("Code Llama",), "0.1.0", "another rotary base"),
    Row(
        "Mistral, Nemo, Small 3",
        ("mistral",),
        ("mistral",),
        ("Mistral",),
        "0.1.0",
        "sliding window in 7B v0.1; Mistral's own files, too; Small 3.1 and 3.2 see pictures",
    ),
    Row(
        "Ministral 3",
        ("ministral3",),
        ("ministral3",),
        ("Ministral 3",),
        "0.1.0",
        "YaRN, queries that grow with their position; sees pictures; fp8",
    ),
    Row("Mixtral", ("mixtral",), ("mixtral",), ("Mixtral",), "0.1.0", "experts"),
    Row(
        "Qwen2, Qwen2.5",
        ("qwen2", "qwen2_5"),
        ("qwen2",),
        ("Qwen 2", "Qwen 2.5"),
        "0.1.0",
        "biases on queries, keys, values",
    ),
    Row(
        "Qwen3, Qwen3 with experts",
        ("qwen3", "qwen3_moe"),
        ("qwen3",),
        ("Qwen 3",),
        "0.1.0",
        "norms on queries and keys",
    ),
    Row(
        "Qwen3.5, 3.6, 3.8",
        ("qwen3_5", "qwen3_5_moe"),
        ("qwen3.5",),
        ("Qwen 3.5 to 3.8",),
        "0.1.0",
        "three of four layers keep a state instead of attending; a gate on attention; sees pictures",
    ),
    Row(
        "Qwen3-Next",
        ("qwen3_next",),
        ("qwen3_next",),
        ("Qwen 3 Next",),
        "0.1.0",
        "layers as in Qwen3.5 with experts; their matrices stand in files head by head",
    ),
    Row("Gemma", ("gemma",), ("gemma",), ("Gemma",), "0.1.0", "norms with an offset, scaled embeddings"),
    Row(
        "Gemma 2",
        ("gemma2",),
        ("gemma2",),
        ("Gemma 2",),
        "0.1.0",
        "soft caps, alternating windows, norms after as well as before",
    ),
    Row(
        "Gemma 3",
        ("gemma3",),
        ("gemma3",),
        ("Gemma 3",),
        "0.1.0",
        "two rotary bases; sees pictures from 4B on",
    ),
    Row(
        "Gemma 4",
        ("gemma4",),
        ("gemma4",),
        ("Gemma 4",),
        "0.1.0",
        "heads of two widths, layers that share keys, inputs by layer, experts beside the feed-forward; sees pictures",
    ),
    Row(
        "Phi-3, Phi-3.5, Phi-4",
        ("phi3", "phi4"),
        ("phi3", "phi4", "longrope"),
        ("Phi",),
        "0.1.0",
        "fused projections, two sets of frequencies; the 128k variants by `auto`",
    ),
    Row(
        "SmolLM2, SmolLM3",
        ("smollm2", "smollm3"),
        ("llama", "smollm3"),
        ("SmolLM",),
        "0.1.0",
        "SmolLM3: layers without positions",
    ),
    Row(
        "OLMo 2",
        ("olmo2",),
        ("olmo2",),
        ("OLMo 2",),
        "0.1.0",
        "norms after attention and feed-forward only",
    ),
    Row(
        "OLMo 3",
        ("olmo3",),
        ("olmo3",),
        ("OLMo 3",),
        "0.1.0",
        "windows in three of four layers, YaRN in the others",
    ),
    Row(
        "gpt-oss",
        ("gpt_oss",),
        ("gpt_oss",),
        ("gpt-oss",),
        "0.1.0",
        "sinks, windows in every second layer, experts with biases; MXFP4",
    ),
    Row(
        "LFM2",
        ("lfm2",),
        ("lfm2",),
        ("LFM2",),
        "0.1.0",
        "two of three layers see a few tokens through a convolution instead of attending",
    ),
    Row(
        "GLM-4-0414",
        (),
        ("glm4",),
        ("GLM",),
        "0.1.0",
        "by `auto`: neighbouring channels turn, half of a head; norms after as well as before",
    ),
    Row(
        "Seed-OSS",
        ("seed_oss",),
        ("seed",),
        ("Seed-OSS",),
        "0.1.0",
        "biases on queries, keys, values; dropout on what blocks add",
    ),
    Row(
        "Muse-Glimmer",
        ("muse_glimmer",),
        ("muse_glimmer",),
        ("Muse-Glimmer",),
        "0.1.0",
        "a gate on attention, normed embeddings, windows in all but every fourth layer; sees pictures",
    ),
    Row(
        "Granite 3.0 to 3.3, 4.0",
        ("granite",),
        ("granite", "granite4"),
        ("Granite",),
        "0.1.0",
        "multipliers everywhere; 4.0 by `auto`: the models of attention alone",
    ),
)


@cache
def builders() -> dict[str, dict[str, ModelBuilder]]:
    """The builders of sizes by their file, the smallest first; other names for the same are left out."""
    files: dict[str, dict[str, ModelBuilder]] = {}
    for name, path in list_components(MODEL).items():
        if isinstance(builder := import_component(path), ModelBuilder):
            own = files.setdefault(path.split(".")[2], {})
            if all(other is not builder for other in own.values()):
                own[name] = builder
    return {
        file: dict(sorted(own.items(), key=lambda item: (item[1].config.num_parameters(), item[0])))
        for file, own in files.items()
    }


def families_of(row: Row) -> set[str]:
    """The families of a row: of its builders, and of its cases."""
    kinds = {str(CASES[name]().model_type) for name in CASES if is_of(name, row.cases)}
    return {family.name for family in all_families() if family.name in kinds} | {
        builder.family.name for module in row.modules for builder in builders()[module].values()
    }


def table() -> str:
    """Return the table as docs/models.md has it."""
    lines = [
        "| family | sizes with a builder | short names to download | proven | since | what sets it apart |",
        "|---|---|---|---|---|---|",
        *(_line(row) for row in ROWS),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    sizes = "; ".join(_shorten(module) for module in row.modules)
    names = [name for section in row.short_names for name in SHORT_NAMES[section]]
    shown = ", ".join(f"`{name}`" for name in names[:_SHOWN]) + ", ..." * (len(names) > _SHOWN)
    cells = (row.name, sizes, shown, ", ".join(_proofs(row)), row.since, row.apart)
    return "| " + " | ".join(cells) + " |"


def _shorten(file: str) -> str:
    """Return the names of a file's builders, all but the first without what they begin with."""
    names = list(builders()[file])
    stem = file if all(name.startswith(f"{file}_") for name in names) else file.partition("_")[0]
    return ", ".join(f"`{name.removeprefix(stem) if index else name}`" for index, name in enumerate(names))


def _proofs(row: Row) -> Iterator[str]:
    own = [name for name in CASES if is_of(name, row.cases)]
    yield f"R{len(own)}"
    if any(CASES[name].shipped for name in own):
        yield "E"
    published = {
        *SOME_PUBLISHED,
        *GEMMAS_PUBLISHED,
        *LFM2_PUBLISHED,
        *GPT_OSS_PUBLISHED,
        *LLAMAS_PUBLISHED,
        *MUSE_GLIMMER_PUBLISHED,
        *QWENS_PUBLISHED,
    }
    if row.modules and all(builders()[module].keys() <= published for module in row.modules):
        yield "S"
    kinds = families_of(row)
    if any(case().model_type in kinds for case in GROWING.values()):
        yield "G"
    if any(is_of(name, row.cases) or (name == "mistral3" and "mistral" in row.modules) for name in LARGER):
        yield "P"


def is_of(case: str, stems: Iterable[str]) -> bool:
    """Whether a case is one of a family: its name without a dash behind, or with a version that has no row itself."""
    name = case.partition("-")[0]
    family = name if any(name in row.cases for row in ROWS) else name.partition(".")[0]
    return any(family == stem or (stem == "llama" and family.startswith("llama")) for stem in stems)


def write() -> None:
    """Put the table into the page."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    write()
