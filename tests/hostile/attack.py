"""Attack every reader of a stranger's files with mutated ones, for as long as is asked: `make attack`.

Each input is read in a worker process under limits of memory and time. Right is an answer or a TuneError; anything else
is a finding, kept in a folder with what happened. The same seed tries the same inputs in the same order.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tune.cli.main import main as run_command
from tune.data.sources import Source
from tune.errors import TuneError
from tune.models import from_checkpoint
from tune.tokenizers import ChatTemplate
from tune.tokenizers import from_checkpoint as tokenizer_from_checkpoint
from tune.utils.paths import expand_path, get_recipes_dir
from tune.utils.workers import Worker, WorkerLimitError

MESSAGES = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]
# What breaks readers, besides bytes that are merely wrong.
NASTY = [
    *(
        b"\x00",
        b"\xff\xfe",
        b"\xed\xbf\xbf",
        b"\x1b]0;owned\x07",
        "\u202e".encode(),
        b"\\udfff",
        b"\r",
        b"\n\n",
    ),
    *(
        b"-1",
        b"0",
        b"1e400",
        b"NaN",
        b"Infinity",
        b"9" * 5000,
        b"18446744073709551616",
        b"null",
        b"true",
        b'""',
    ),
    *(b"[" * 5000, b'{"a":' * 2000, b"(" * 500, b"${" * 50, b"&a [*a,*a]", b"!!python/object:os.system x"),
    *(b"../../../etc/passwd", b"/dev/zero", b"~nosuchuser/x", b"$HOME", b"bundled:../..", b"A" * 70_000),
    *(b"{{ x * 999999999 }}", b"{% for i in range(99999) %}", b"{{ ''.__class__ }}", b"| tojson * 99999"),
]
TEMPLATE = (
    "{% for m in messages %}{{ '<|' ~ m.role ~ '|>' + m['content'] | trim }}{% if loop.last %}{{ eos_token }}"
    "{% endif %}{% endfor %}{% set ns = namespace(a=[1, 2]) %}"
    "{% macro f(x) %}{{ x | tojson }}{% endmacro %}{{ f(ns.a) }}"
)


@dataclass(frozen=True)
class Target:
    """A kind of file, and what reads it.

    Args:
        seed_files: a folder of honest files, each of which is mutated.
        read: reads the folder in which one file, named second, is hostile.
    """

    seed_files: Path
    read: Callable[[Path, str], None]


def read_config(folder: Path, name: str) -> None:
    """Judge a config on the command line; a code that is not documented is a finding."""
    code = run_command(["validate", str(folder / name), "--json"])
    if code not in (0, 2):
        raise AssertionError(f"tune validate ended with {code}")


def read_template(folder: Path, name: str) -> None:
    """Render a chat template; the worker is what bounds it."""
    template = ChatTemplate((folder / name).read_text(encoding="utf-8", errors="replace"))
    template.variables()
    template.render(MESSAGES, add_generation_prompt=True, variables={"eos_token": "</s>"})


def read_data(folder: Path, name: str) -> None:
    """Read all rows of a data file."""
    for row in Source(str(folder / name)).rows():
        assert row.place


def read_model(folder: Path, name: str) -> None:
    """Read a whole checkpoint: sizes, weights, tokenizer, chat template."""
    tokenizer = tokenizer_from_checkpoint(folder)
    tokenizer.decode(tokenizer.encode("the question \u2603"))
    from_checkpoint(folder)


def make_targets(folder: Path) -> dict[str, Target]:
    """Write honest files of every kind, to be mutated."""
    import pyarrow
    from pyarrow import parquet

    configs, templates, data = folder / "configs", folder / "templates", folder / "data"
    for made in (configs, templates, data):
        made.mkdir(parents=True)
    for config in sorted(get_recipes_dir().glob("configs/*/*.yaml")):
        shutil.copyfile(config, configs / f"{config.parent.name}_{config.name}")
    (templates / "chat.jinja").write_text(TEMPLATE)
    rows = [{"instruction": f"say {n}", "output": "a\tb" * n, "number": n / 7} for n in range(9)]
    (data / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (data / "rows.json").write_text(json.dumps(rows, indent=1))
    (data / "rows.csv").write_text("instruction,output\n" + '"say ""a""",b\n' * 9)
    parquet.write_table(pyarrow.Table.from_pylist(rows), data / "rows.parquet")
    model = folder / "model"
    shutil.copytree(expand_path("bundled:tiny_llama"), model)
    return {
        "config": Target(configs, read_config),
        "template": Target(templates, read_template),
        "data": Target(data, read_data),
        "model": Target(model, read_model),
    }


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Return content with a few changes: bytes flipped, cut, repeated, moved, or something nasty put in."""
    changed = bytearray(content)
    # Most of a file of weights is numbers: what is said about them stands at its start.
    reach = min(len(changed), 4096) if rng.random() < 0.7 else len(changed)
    for _ in range(rng.choice((1, 1, 2, 5))):
        start = rng.randrange(reach + 1) if reach else 0
        end = min(len(changed), start + rng.choice((1, 4, 30, 300)))
        kind = rng.randrange(5)
        if kind == 0 and start < len(changed):
            changed[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[start:end]
        elif kind == 2:
            changed[start:start] = changed[start:end] * rng.choice((1, 3, 100))
        elif kind == 3:
            changed[start : end if rng.random() < 0.5 else start] = rng.choice(NASTY)
        elif rng.random() < 0.2:
            del changed[start:]
    return bytes(changed)


def attack(seconds: float, seed: int, findings: Path) -> Counter[str]:
    """Try mutated files of every kind in turn; return how many of each, and how many fell."""
    rng = random.Random(seed)
    worker = Worker(memory_bytes=3 << 30, seconds=120)
    tried: Counter[str] = Counter()
    deadline = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name:
        targets = make_targets(Path(name) / "seeds")
        while time.monotonic() < deadline:
            for kind, target in targets.items():
                place = Path(name) / "hostile"
                shutil.copytree(target.seed_files, place)
                victim = rng.choice(sorted(path.name for path in place.iterdir() if path.is_file()))
                (place / victim).write_bytes(mutate((place / victim).read_bytes(), rng))
                tried[kind] += 1
                try:
                    worker.call(target.read, place, victim)
                except TuneError:
                    pass
                except (WorkerLimitError, Exception) as error:  # noqa: BLE001 (whatever it is, it is a finding)
                    tried[f"{kind} fell"] += 1
                    kept = findings / f"{kind}_{tried[kind]}_{victim}"
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(place / victim, kept)
                    kept.with_name(kept.name + ".why").write_text(f"{type(error).__name__}: {error}\n")
                shutil.rmtree(place)
    worker.stop()
    return tried


def main() -> int:
    """Attack, and say what was tried and what fell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("attack_findings"))
    given = parser.parse_args()
    tried = attack(given.minutes * 60, given.seed, given.findings)
    fallen = sum(count for kind, count in tried.items() if kind.endswith("fell"))
    sys.stdout.write("".join(f"{kind:16} {count}\n" for kind, count in sorted(tried.items())))
    sys.stdout.write(f"{fallen} fell" + (f": see {given.findings}\n" if fallen else "\n"))
    return 1 if fallen else 0


if __name__ == "__main__":
    # By its full name, under which the worker finds the readers.
    from tests.hostile import attack as module

    sys.exit(module.main())
