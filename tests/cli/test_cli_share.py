"""`tune share`, and `tune run` of what it wrote: whole, without what is private, and run only once it is trusted."""

from __future__ import annotations

import email
import errno
import hashlib
import html
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from email.policy import default
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import quote

import pytest

from tests.components import trusting
from tune.cli.main import main
from tune.sharing import bundle, opening, staging

ROOT = Path(__file__).resolve().parents[2]

TOKEN = "hf_" + "Qx7" * 8
# A name that each way of writing texts down spells otherwise.
FOLDER = "Zoltán & 'Söhne' <acme>"
SECRETS = ["zoltan77", "kryptonbox", "zoltán", "söhne", "acme", "geheim", "0.00123", TOKEN.lower(), "qx7qx7"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a short run with an adapter, on data in a folder with a telling name."""
    root = tmp_path_factory.mktemp("shared")
    data = root / "home" / FOLDER / "geheim_rows.jsonl"
    data.parent.mkdir(parents=True)
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"number {n}"} for n in range(12)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = root / "home" / FOLDER / "out"
    settings = ["max_steps=2", "batch_size=3", "log_every_n_steps=1", "optimizer.weight_decay=0.00123"]
    settings += [
        f"output_dir={run}",
        f"dataset.source={data}",
        'sample_prompts=["Say 3."]',
        "generate_every_n_steps=1",
    ]
    with trusting():
        assert main(["run", "lora_finetune", "--config", "tiny/lora_finetune", *settings]) == 0
    return run


@pytest.fixture
def planted(run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run with private texts in all of its files, in every spelling; its user and machine have telling names."""
    monkeypatch.setenv("USER", "zoltan77")
    run = tmp_path / "runs" / "geheim_run"
    shutil.copytree(run_folder, run, symlinks=True)
    path = str(run_folder.parent / "geheim_rows.jsonl")
    spellings = [path, json.dumps(path), json.dumps(path, ensure_ascii=False), repr(path), html.escape(path)]
    spellings += [
        quote(path),
        html.escape(json.dumps(path)),
        f"file://{path}",
        os.path.relpath(path),
        path.upper()[:0],
    ]
    spellings += [f"dataset.source={path} x", f"set in: dataset.source={path[:-9]}..."]
    spellings += [f"\nZOLTAN77 on kryptonbox\\nzoltan77 zoltan77@kryptonbox.example {TOKEN} password=geheim1"]
    text = " | ".join(spellings)
    for name in ("console.log", "preview.txt"):
        with (run / name).open("a") as file:
            file.write(f"{text}\n{path}/further\n/home/zoltan77/venv/lib/x.py\n")
    record = json.loads((run / "run.json").read_text())
    record["host"]["name"] = "kryptonbox.example"
    record["recipe"]["git"] = {"branch": "geheim-branch", "commit": "0" * 40}
    record["warnings"] = [text]
    record["sessions"][0]["error"] = f"Traceback ... {path} {text}"
    (run / "run.json").write_text(json.dumps(record))
    with (run / "samples.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, "prompt": text, "answer": text, "hf_token": "geheim2"}) + "\n")
        file.write(f"no JSON {text}\n".replace("\n", " ") + "\n")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "loss": 1.0, "note": text}) + "\n")
    with (run / "config.yaml").open("a") as file:
        file.write(
            f"# {path}\nextra:\n  hf_token: geheim3\n  entity: geheim-team\n  note: {json.dumps(text)}\n"
        )
    evaluation = run / "evaluations" / "step_000002_geheim_rows"
    evaluation.mkdir(parents=True)
    told = {
        "tune_evaluation": 1,
        "model": "elsewhere/geheim-model",
        "data": "elsewhere/geheim.csv",
        "data_id": "geheim-id",
        "notes": [text],
    }
    (evaluation / "scores.json").write_text(json.dumps(told))
    row = {"place": "elsewhere/geheim.csv:3", "prompt": text, "answer": "of elsewhere/geheim-model"}
    (evaluation / "answers.jsonl").write_text(json.dumps(row) + "\n")
    (run / "latest" / "adapter" / "README.md").write_text(text)
    (run / "report.html").write_text(f'<meta name="generator" content="tune report">{html.escape(text)}')
    return run


def contents(path: Path) -> dict[str, bytes]:
    """Return the files in a folder or zip."""
    if path.is_dir():
        return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def test_nothing_private_is_left_in_any_file(tune, planted: Path, tmp_path: Path) -> None:
    outcome = tune("share", str(planted), "--redact", "--redact-key", "optimizer.weight_decay", "-z")
    assert outcome.code == 0, outcome.err
    files = contents(tmp_path / "run-shared.zip")
    expected = {"report.html", "console.log", "run.json", "adapter/adapter_model.safetensors"}
    expected |= {"evaluations/1/scores.json", "evaluations/1/answers.jsonl"}
    assert expected <= {name.partition("/")[2] for name in files}
    for name, content in files.items():
        text = content.decode("utf-8", errors="replace").lower()
        for spelt in (text, html.unescape(text), text.encode().decode("unicode_escape", errors="replace")):
            found = [secret for secret in SECRETS if secret in spelt]
            assert found == [], name
    # What went is shown, but for tokens; and what is left is still what it was.
    assert "dataset.source" in outcome.out
    assert "geheim3" not in outcome.out
    metrics = files["run-shared/metrics.jsonl"].splitlines()
    assert json.loads(metrics[0]) == json.loads((planted / "metrics.jsonl").read_text().splitlines()[0])
    assert b'"tune_run": 1' in files["run-shared/run.json"]


def test_tokens_are_left_out_in_any_case(tune, planted: Path, tmp_path: Path) -> None:
    assert tune("share", str(planted), "--to", "plain").code == 0
    for name, content in contents(tmp_path / "plain").items():
        assert TOKEN.encode() not in content, name
        assert b"geheim3" not in content, name
        assert b"geheim2" not in content, name
    assert b"geheim_rows" in (tmp_path / "plain" / "config.yaml").read_bytes()


@pytest.fixture(scope="module")
def shared_zip(run_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zip") / "handed.zip"
    with trusting():
        assert main(["share", str(run_folder), "--redact", "--to", str(path)]) == 0
    return path


def test_a_shared_run_gives_the_same_weights(
    tune, shared_zip: Path, run_folder: Path, tmp_path: Path
) -> None:
    refused = tune("run", str(shared_zip))
    assert refused.code == 2
    assert "dataset.source=..." in refused.err
    assert not (tmp_path / "out").exists()
    source = run_folder.parent / "geheim_rows.jsonl"
    outcome = tune("run", str(shared_zip), f"dataset.source={source}")
    assert outcome.code == 0, outcome.err
    assert "Versions, device and data are the same here" in outcome.err
    assert "bit for bit" in outcome.err.splitlines()[-1]
    name = "latest/adapter/adapter_model.safetensors"
    assert (tmp_path / "out/handed" / name).read_bytes() == (run_folder / name).read_bytes()
    assert (
        "handed-shared/config.yaml" in json.loads((tmp_path / "out/handed/run.json").read_text())["command"]
    )
    # Other rows are seen before anything starts.
    other = tmp_path / "other.jsonl"
    other.write_text(source.read_text().replace("number 3", "number three"))
    dry = tune("run", str(shared_zip), f"dataset.source={other}", "--dry-run")
    assert dry.code == 0, dry.err
    assert "What differs" in dry.err
    assert "dataset.source" in dry.err


def test_a_terminal_is_asked_for_what_was_left_out(tune, shared_zip, tmp_path, monkeypatch) -> None:
    asked: list[str] = []

    def answer(prompt: str) -> str:
        asked.append(prompt)
        return "rows.jsonl"

    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", answer)
    outcome = tune("run", str(shared_zip), "--dry-run", "output_dir=elsewhere")
    assert outcome.code == 0, outcome.err
    assert asked == ["dataset.source was left out. Its value here: "]
    assert "source: rows.jsonl" in outcome.out
    assert "output_dir: elsewhere" in outcome.out
    assert list(tmp_path.iterdir()) == []


def test_a_strange_recipe_runs_only_when_trusted(tune, run_folder: Path, tmp_path: Path) -> None:
    run, mark = tmp_path / "run", tmp_path / "ran"
    shutil.copytree(run_folder, run, symlinks=True)
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "import beside\nimport tune.config\nfrom tune.recipes.params.lora_finetune import LoraFinetuneParams\n"
        "@tune.config.parse\ndef recipe_main(params: LoraFinetuneParams) -> int:\n    return 0\n"
        "if __name__ == '__main__':\n    recipe_main()\n"
    )
    (tmp_path / "beside.py").write_text(f"open({str(mark)!r}, 'a').write('x')\n")
    record = json.loads((run / "run.json").read_text())
    record["recipe"] = {"file": str(recipe)}
    (run / "run.json").write_text(json.dumps(record))
    assert tune("share", str(run), "--to", "given").code == 0
    assert sorted(path.name for path in (tmp_path / "given/recipe").iterdir()) == ["beside.py", "mine.py"]
    assert not mark.exists()
    (tmp_path / "beside.py").rename(tmp_path / "elsewhere.py")
    refused = tune("run", "./given")
    assert refused.code == 2
    assert "--trust-recipe" in refused.err
    assert not mark.exists()
    assert tune("run", "./given", "--trust-recipe").code == 0
    assert mark.exists()


def test_a_letter_is_written_and_nothing_else(tune, run_folder: Path, tmp_path: Path) -> None:
    outcome = tune("share", str(run_folder), "--to", "given", "--email", "a@example.com, b@example.com")
    assert outcome.code == 0, outcome.err
    assert "Nothing was sent" in outcome.out
    letter = email.message_from_bytes((tmp_path / "given.eml").read_bytes(), policy=default)
    assert letter["To"] == "a@example.com, b@example.com"
    attached = next(letter.iter_attachments())
    assert attached.get_content() == (tmp_path / "given.zip").read_bytes()
    assert "tune run given.zip" in letter.get_body().get_content()
    assert tune("share", str(run_folder), "--to", "odd\nname", "--email", "a@example.com").code == 0
    odd = email.message_from_bytes((tmp_path / "odd\nname.eml").read_bytes(), policy=default)
    assert odd["Subject"] == r"A run of tune: odd\nname"
    for address in ("nobody", "a@example.com\nBcc: c@example.com"):
        assert tune("share", str(run_folder), "--to", "other", "--email", address).code != 0
    assert not (tmp_path / "other.zip").exists()


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_what_fails_leaves_nothing(tune, run_folder: Path, tmp_path: Path, monkeypatch, failure) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "mine.txt").write_text("mine")
    assert "was not written by tune share" in tune("share", str(run_folder), "--to", "given", "--force").err
    assert "--force" in tune("share", str(run_folder), "--to", "given").err

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(bundle, "_list_files", fail)
    assert tune("share", str(run_folder), "--to", "new").code in (1, 130)
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_what_a_killed_call_leaves_goes_with_the_next(tune, run_folder: Path, tmp_path: Path) -> None:
    assert tune("share", str(run_folder), "--to", "given").code == 0
    code = (
        "import os, signal, sys; from tune.sharing import staging; from tune.cli.main import main\n"
        "rename = os.rename\n"
        "def kill(source, target):\n"
        "    rename(source, target)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "staging.os.rename = kill\n"
        "main(sys.argv[1:])"
    )
    words = [sys.executable, "-c", code, "share", str(run_folder), "--to", "given", "--force"]
    done = subprocess.run(words, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -signal.SIGKILL
    (leftover,) = tmp_path.iterdir()  # with what was shared before in it
    assert leftover.name.startswith(".tune-share.")
    with staging.staging(tmp_path / "other") as place:  # one that is in use stays
        assert not leftover.exists()
        assert (tmp_path / "given" / "config.yaml").is_file()
        assert tune("share", str(run_folder), "--to", "new").code == 0
        assert place.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "new"]


def test_a_fault_in_a_zip_is_named_by_the_zip(tune, shared_zip: Path, tmp_path: Path) -> None:
    for words in (["run", str(shared_zip)], ["run", str(shared_zip), "--dry-run"]):
        outcome = tune(*words, "dataset.source=x.jsonl", "batch_size=no")
        assert outcome.code == 2
    with zipfile.ZipFile(shared_zip) as archive:
        text = archive.read("handed/config.yaml").decode()
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile("bad.zip", "w") as archive:
        for info, content in with_config(re.sub("max_steps: .*", "max_step: 2", text))(entries):
            archive.writestr(info, content)
    line = 1 + text[: text.index("max_steps:")].count("\n")
    for words in (["run", "bad.zip"], ["run", "bad.zip", "--dry-run"], ["validate", "bad.zip"]):
        outcome = tune(*words, "dataset.source=x.jsonl")
        assert outcome.code == 2
        assert f"bad.zip/config.yaml:{line}:1" in outcome.err
        assert tempfile.gettempdir() not in outcome.err.replace(str(tmp_path), "")
    told = json.loads(tune("validate", "bad.zip", "--json", "dataset.source=x.jsonl").out)
    assert {error["source"]["file"] for error in told["errors"]} == {"bad.zip/config.yaml"}
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zip"]  # nothing was unpacked to stay


def test_force_replaces_what_was_shared_before(tune, run_folder: Path, tmp_path: Path) -> None:
    assert tune("share", str(run_folder), "--to", "given").code == 0
    (tmp_path / "given" / "old.txt").write_text("old")
    assert tune("share", str(run_folder), "--to", "given").code != 0
    assert tune("share", str(run_folder), "--to", "given", "--force").code == 0
    assert not (tmp_path / "given" / "old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


Change = Callable[[list[tuple[zipfile.ZipInfo, bytes]]], list[tuple[zipfile.ZipInfo, bytes]]]


def link(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> list[tuple[zipfile.ZipInfo, bytes]]:
    info = zipfile.ZipInfo("handed/link")
    info.external_attr = 0o120777 << 16
    return [*entries, (info, b"/etc/passwd")]


def added(name: str) -> Change:
    return lambda entries: [*entries, (zipfile.ZipInfo(name), b"x")]


def listed_outside(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> list[tuple[zipfile.ZipInfo, bytes]]:
    """Return a zip whose manifest agrees with the file that leads out of it."""
    manifest = json.loads({info.filename: content for info, content in entries}["handed/manifest.json"])
    manifest["files"]["../evil"] = {
        "bytes": 1,
        "sha256": "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
    }
    kept = [each for each in entries if each[0].filename != "handed/manifest.json"]
    new = (zipfile.ZipInfo("handed/manifest.json"), json.dumps(manifest).encode())
    return [*kept, new, (zipfile.ZipInfo("handed/../evil"), b"x")]


def with_config(text: str) -> Change:
    """Return what puts another config in, and its checksum into the manifest."""

    def change(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> list[tuple[zipfile.ZipInfo, bytes]]:
        files = {info.filename: content for info, content in entries} | {"handed/config.yaml": text.encode()}
        manifest = json.loads(files["handed/manifest.json"])
        digest = hashlib.sha256(text.encode()).hexdigest()
        manifest["files"]["config.yaml"] = {"bytes": len(text.encode()), "sha256": digest}
        files["handed/manifest.json"] = json.dumps(manifest).encode()
        return [(zipfile.ZipInfo(name), content) for name, content in files.items()]

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            with_config(
                "a0: &a0 []\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 12))
            ),
            "values",
        ),
        (with_config(f"? {'k' * 2000}\n: [1, 2]\n"), "1,000 characters"),
        (added("handed/../../evil"), "leads out of it"),
        (listed_outside, "leads out of it"),
        (added("/evil"), "not what tune share writes"),
        (added("handed/torch.py"), "does not know"),
        (link, "is a link"),
        (lambda entries: entries[1:], "is missing"),
        (
            lambda entries: [
                (i, c + b"#") if i.filename.endswith("config.yaml") else (i, c) for i, c in entries
            ],
            "checksum",
        ),
        (lambda entries: [*entries, entries[0]], "twice"),
        (lambda entries: [e for e in entries if "manifest" not in e[0].filename], "no shared run"),
        (
            lambda entries: [(i, b"[" * 9999) if "manifest" in i.filename else (i, c) for i, c in entries],
            "no shared run",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_that_was_tampered_with_is_refused(
    tune, shared_zip: Path, tmp_path: Path, change: Change, said: str
) -> None:
    with zipfile.ZipFile(shared_zip) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for info, content in change(entries):
            archive.writestr(info, content)
    outcome = tune("run", "bad.zip", "dataset.source=x")
    assert outcome.code != 0
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["bad.zip"]


def test_bombs_links_and_rubbish_are_refused(tune, shared_zip: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "rubbish.zip").write_bytes(b"PK\3\4" + bytes(99))
    assert "cannot be opened" in tune("run", "rubbish.zip").err
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "broken.zip", "w", method) as archive:
            archive.writestr("handed/manifest.json", os.urandom(99) * 9)
        content = bytearray((tmp_path / "broken.zip").read_bytes())
        content[50:110] = b"\xff" * 60
        (tmp_path / "broken.zip").write_bytes(content)
        assert "cannot be opened" in tune("run", "broken.zip").err
    with zipfile.ZipFile(shared_zip) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "handed"
    (folder / "config.yaml").rename(tmp_path / "config.yaml")
    (folder / "config.yaml").symlink_to(tmp_path / "config.yaml")
    assert "is a link" in tune("run", "./handed").err
    monkeypatch.setattr(opening, "MAX_BYTES", 20_000)
    assert "would take more than" in tune("run", str(shared_zip)).err


def test_sharing_imports_nothing_the_config_names(
    tune, run_folder: Path, tmp_path: Path, monkeypatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run, symlinks=True)
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = run / "config.yaml"
    config.write_text(
        config.read_text().replace("tune.training.metric_logging.DiskLogger", "evil_module.Logger")
    )
    assert tune("share", str(run), "--redact").code == 0
    config.write_text(config.read_text() + "bomb: &a [*a]\n" + "deep: " + "[" * 5000)
    assert tune("share", str(run), "--to", "other").code in (1, 2)
    assert not (tmp_path / "other").exists()


def test_merging_writes_into_the_run_and_names_what_is_next(tune, run_folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run, symlinks=True)
    merged = tune("merge", str(run))
    assert merged.code == 0, merged.err
    assert (run / "step_000002-merged" / "model.safetensors").is_file()
    assert merged.out.rstrip().endswith(f"tune chat {run / 'step_000002-merged'}")  # it has a chat template
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        (run / "step_000002-merged" / name).unlink(missing_ok=True)
    converted = tune("convert-ckpt", str(run / "step_000002-merged"), "plain")
    assert converted.out.rstrip().endswith(
        "tune run generate plain prompt_template=question_answer prompt='...'"
    )


def test_strange_records_of_a_shared_run_are_only_shown(tune, shared_zip: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(shared_zip) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "handed"
    record = json.loads((folder / "run.json").read_text())
    record["model"]["parameters"] = record["result"]["loss"] = 10**400
    record["versions"] = {"torch": "\nVersions, device and data are the same here."}
    (folder / "run.json").write_text(json.dumps(record))
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / "run.json").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"]["run.json"] = {"bytes": len(content), "sha256": digest}
    manifest["inputs"] = {"a\nb": 3}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    outcome = tune("run", "./handed", "--dry-run", "dataset.source=x.jsonl")
    assert "Traceback" not in outcome.err
    assert "\nVersions, device" not in outcome.err
    assert "a\\nb" in outcome.err
    assert "nothing of that name" in outcome.err  # not what lies in the working directory
