"""`tune upload` against a hub on loopback: what is sent, what never is, and what stands in the way."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from hub_server import HubServer
from huggingface_hub import constants

from tests import warm_python
from tune.training.saving.saved_steps import link_steps, write_step

ROOT = Path(__file__).resolve().parents[2]
TINY = ROOT / "recipes" / "bundled" / "tiny_llama"
TOKEN = "hf_secret123"
MODEL_FILES = {path.name for path in TINY.iterdir()}


@pytest.fixture
def ann(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The hub, with ann logged in, who may write."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", constants.HF_HUB_DISABLE_XET)  # undone after
    hub.users |= {TOKEN: ("ann", "write"), "hf_read": ("ann", "read"), "hf_bob": ("bob", "write")}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return hub


def make_run(folder: Path, *, adapter: bool = False) -> Path:
    """A run's output directory, as training leaves it, with things beside the model that are nobody's business."""
    for step in (3, 7):
        with write_step(folder, step) as staged:
            if adapter:
                (staged / "adapter").mkdir()
                config = {"peft_type": "LORA", "base_model_name_or_path": str(TINY), "r": 5}
                (staged / "adapter" / "adapter_config.json").write_text(json.dumps(config))
                shutil.copy(TINY / "model.safetensors", staged / "adapter" / "adapter_model.safetensors")
            else:
                shutil.copytree(TINY, staged / "model")
                config = json.loads((TINY / "config.json").read_text()) | {"_name_or_path": "/home/me/base"}
                (staged / "model" / "config.json").write_text(json.dumps(config))
                (staged / "model" / "notes.txt").write_text("private")
                (staged / "model" / "optimizer.pt").write_text("state")
            (staged / "state").mkdir()
            (staged / "state" / "run.pt").write_bytes(b"state")
    link_steps(folder, latest=7, best=3)
    (folder / "config.yaml").write_text(yaml.safe_dump({"recipe": "full_finetune", "seed": 5}))
    (folder / "metrics.jsonl").write_text('{"step": 3, "loss": 2.5}\n{"step": 7, "loss": 1.25}\n')
    return folder


def files_on(hub: HubServer, repo: str, branch: str = "main") -> dict[str, bytes]:
    return {name: data for name, data in hub.repos[repo].branches[branch].items() if name != ".gitattributes"}


def test_a_step_is_sent_with_a_card_and_nothing_else(tune, ann: HubServer, tmp_path: Path) -> None:
    make_run(tmp_path / "out")
    outcome = tune("upload", "out", "ann/parrot", "--private")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{ann.url}/ann/parrot\n"
    assert ann.repos["ann/parrot"].private
    sent = files_on(ann, "ann/parrot")
    assert set(sent) == MODEL_FILES | {"README.md"}
    assert sent["model.safetensors"] == (TINY / "model.safetensors").read_bytes()
    assert "_name_or_path" not in json.loads(sent["config.json"])
    assert b"saved after step 7" in sent["README.md"]
    assert b"`1.25`" in sent["README.md"]
    assert "nothing else of the folder is sent" in outcome.err
    assert "  model.safetensors        2.8 MB" in outcome.err
    assert ann.repos["ann/parrot"].log == [{"summary": "Upload model, step 7, with tune", "description": ""}]
    everything = b"".join(sent.values()) + outcome.err.encode()
    assert b"/home/me" not in everything
    assert TOKEN.encode() not in everything


@pytest.mark.parametrize(
    ("path", "step"),
    [("out", 7), ("out/latest", 7), ("out/best", 3), ("out/step_000003", 3), ("out/step_000003/model", 3)],
)
def test_a_step_is_named_in_every_usual_way(
    tune, ann: HubServer, tmp_path: Path, path: str, step: int
) -> None:
    make_run(tmp_path / "out")
    assert tune("upload", path, "parrot").code == 0
    assert f"saved after step {step}.".encode() in files_on(ann, "ann/parrot")["README.md"]


def test_an_adapter(tune, ann: HubServer, tmp_path: Path) -> None:
    make_run(tmp_path / "out", adapter=True)
    outcome = tune("upload", "out", "ann/lora", "--base-model", "owner/base", "--message", "my adapter")
    assert outcome.code == 0, outcome.err
    sent = files_on(ann, "ann/lora")
    assert set(sent) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert json.loads(sent["adapter_config.json"])["base_model_name_or_path"] == "owner/base"
    assert b"library_name: peft" in sent["README.md"]
    assert ann.repos["ann/lora"].log[0]["summary"] == "my adapter"


def test_a_step_with_both_says_so(tune, ann: HubServer, tmp_path: Path) -> None:
    with write_step(tmp_path / "out", 5) as staged:
        shutil.copytree(TINY, staged / "model")
        (staged / "adapter").mkdir()
        (staged / "adapter" / "adapter_config.json").write_text("{}")
        shutil.copy(TINY / "model.safetensors", staged / "adapter" / "adapter_model.safetensors")
    outcome = tune("upload", "out", "ann/both")
    assert outcome.code == 0, outcome.err
    assert "adapter_config.json" not in files_on(ann, "ann/both")
    assert f"give {tmp_path}/out/step_000005/adapter" in outcome.err
    assert tune("upload", "out/step_000005/adapter", "ann/adapter").code == 0
    assert set(files_on(ann, "ann/adapter")) == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }


def test_a_folder_of_no_run_keeps_its_own_card(tune, ann: HubServer, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "m")
    (tmp_path / "m" / "README.md").write_text("# mine\n")
    assert tune("upload", "m", "ann/mine").code == 0
    assert files_on(ann, "ann/mine")["README.md"] == b"# mine\n"


def test_what_goes_up_comes_down(tune, ann: HubServer, tmp_path: Path) -> None:
    make_run(tmp_path / "out")
    assert tune("upload", "out", "ann/parrot").code == 0
    assert tune("download", "ann/parrot").code == 0
    folder = tmp_path / "checkpoints" / "parrot"
    assert (folder / "model.safetensors").read_bytes() == (TINY / "model.safetensors").read_bytes()
    outcome = tune(
        "run", "generate", f"model_checkpoint={folder}", "prompt=hi", "max_new_tokens=2", "device=cpu"
    )
    assert outcome.code == 0, outcome.err


def test_a_model_that_is_there_stays(tune, ann: HubServer, tmp_path: Path) -> None:
    make_run(tmp_path / "out")
    before = {"model-00001-of-00002.safetensors": b"a", "model-00002-of-00002.safetensors": b"b",
              "model.safetensors.index.json": b"{}", "eval.txt": b"keep"}  # fmt: skip
    ann.add("ann/parrot", before, writers={"ann"})
    outcome = tune("upload", "out", "ann/parrot")
    assert outcome.code == 1
    assert (
        "holds a model already (model-00001-of-00002.safetensors, model-00002-of-00002.safetensors)"
        in outcome.err
    )
    assert "--force replaces it" in outcome.err
    assert files_on(ann, "ann/parrot") == before
    outcome = tune("upload", "out", "ann/parrot", "--force")
    assert outcome.code == 0, outcome.err
    assert "model-00001-of-00002.safetensors there is deleted" in outcome.err
    after = files_on(ann, "ann/parrot")
    assert set(after) == MODEL_FILES | {"README.md", "eval.txt"}, "old parts beside new weights would mislead"


def test_an_empty_repository_needs_no_force(tune, ann: HubServer, tmp_path: Path) -> None:
    make_run(tmp_path / "out")
    ann.add("ann/parrot", {"README.md": b"soon"}, writers={"ann"})
    assert tune("upload", "out", "ann/parrot").code == 0


def test_private_is_not_pretended(tune, ann: HubServer, tmp_path: Path) -> None:
    make_run(tmp_path / "out")
    ann.add("ann/parrot", {}, writers={"ann"})
    outcome = tune("upload", "out", "ann/parrot", "--private")
    assert outcome.code == 1
    assert "is public already" in outcome.err
    assert files_on(ann, "ann/parrot") == {}


def test_a_branch(tune, ann: HubServer, tmp_path: Path) -> None:
    make_run(tmp_path / "out")
    outcome = tune("upload", "out", "ann/parrot", "--revision", "step/7")
    assert outcome.code == 0, outcome.err
    assert outcome.out == f"{ann.url}/ann/parrot/tree/step%2F7\n"
    assert "model.safetensors" in files_on(ann, "ann/parrot", "step/7")
    assert files_on(ann, "ann/parrot") == {}
    assert "--force" in tune("upload", "out", "ann/parrot", "--revision", "step/7").err


@pytest.mark.parametrize(
    ("token", "repo", "expected"),
    [
        ("", "ann/x", "uploading needs a token that may write"),
        ("hf_wrong", "ann/x", "does not accept the token (HF_TOKEN)"),
        ("hf_read", "ann/x", "may only read"),
        ("hf_bob", "ann/x", "may not write to ann/x"),
        ("hf_bob", "ann/public", "may not write to ann/public"),
        ("hf_bob", "ann/secret", "may not write to ann/secret"),
    ],
)
def test_who_may_not(
    tune,
    ann: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str,
    repo: str,
    expected: str,
) -> None:
    make_run(tmp_path / "out")
    ann.add("ann/public", {}, writers={"ann"})
    ann.add("ann/secret", {}, writers={"ann"}, private=True)
    monkeypatch.setenv("HF_TOKEN", token)
    outcome = tune("upload", "out", repo)
    assert outcome.code == 1
    assert expected in outcome.err
    assert "https://huggingface.co/settings/tokens" in outcome.err
    assert not any(files_on(ann, name) for name in ann.repos)


@pytest.mark.parametrize("part", ["model/model.safetensors", "model/config.json", "manifest.json"])
def test_a_damaged_step_is_not_sent(tune, ann: HubServer, tmp_path: Path, part: str) -> None:
    file = make_run(tmp_path / "out") / "step_000007" / part
    data = file.read_bytes()
    file.write_bytes(data[:-10] + b"x" * 10)
    outcome = tune("upload", "out", "ann/parrot")
    assert outcome.code == 1
    assert file.name in outcome.err
    assert "ann/parrot" not in ann.repos


def test_optimizer_state_need_not_be_whole(tune, ann: HubServer, tmp_path: Path) -> None:
    (make_run(tmp_path / "out") / "step_000007" / "state" / "run.pt").unlink()
    assert tune("upload", "out", "ann/parrot").code == 0


def test_a_folder_with_weights_cut_short(tune, ann: HubServer, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    outcome = tune("upload", "m", "ann/x")
    assert outcome.code == 1
    assert "model.safetensors" in outcome.err
    weights.unlink()
    assert "no weights" in tune("upload", "m", "ann/x").err
    assert "ann/x" not in ann.repos


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ([], 2, "0 arguments given; usage: tune upload CHECKPOINT REPO"),
        (["out"], 2, "1 argument given; usage: tune upload"),
        (["out", "a/b", "c"], 2, "3 arguments given; usage: tune upload"),
        (["out", "a/b/c"], 2, "no name of a repository"),
        (["out", "a b"], 2, "no name of a repository"),
        (["out", "../x"], 2, "no name of a repository"),
        (["out", "ann/x", "--base-model", "here"], 2, "--base-model takes owner/name"),
        (["out", "ann/x", "--message", " "], 2, "--message is empty"),
        (["nowhere", "ann/x"], 1, "there is no folder nowhere"),
        (["a\0b", "ann/x"], 2, "CHECKPOINT is empty"),
        (["empty", "ann/x"], 1, "no model was found in empty"),
    ],
)
def test_usage(tune, ann: HubServer, tmp_path: Path, words: list[str], code: int, expected: str) -> None:
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "out")
    outcome = tune("upload", *words)
    assert outcome.code == code
    assert outcome.err.startswith("error: ")
    assert expected in outcome.err
    assert ann.repos == {}


def test_metas_layout_is_converted_first(tune, ann: HubServer, tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "params.json").write_text("{}")
    (tmp_path / "meta" / "consolidated.00.pth").write_bytes(b"x")
    outcome = tune("upload", "meta", "ann/x")
    assert outcome.code == 1
    assert "tune convert-ckpt" in outcome.err


@pytest.mark.parametrize(
    ("match", "status", "expected"),
    [("/commit/", 500, "problem of its own"), ("/commit/", 412, "changed by somebody else"), ("/lfs/", 403, "failed"),
     ("/preupload/", 403, "may not write"), ("/commit/", 200, "failed")],
)  # fmt: skip
def test_a_refusal_on_the_way(
    tune, ann: HubServer, tmp_path: Path, match: str, status: int, expected: str
) -> None:
    make_run(tmp_path / "out")
    ann.fail(match, "status", status=status, times=99, body="{}")
    outcome = tune("upload", "out", "ann/parrot")
    assert outcome.code == 1
    assert expected in outcome.err
    assert "shows nothing new. Run the same command again" in outcome.err
    assert TOKEN not in outcome.err
    ann.faults.clear()
    puts = ann.count("PUT", "/lfs/")
    assert tune("upload", "out", "ann/parrot").code == 0
    if match == "/commit/":
        assert ann.count("PUT", "/lfs/") == puts, "what had arrived is not sent twice"


def test_a_hub_that_takes_xet_is_sent_xet(tune, ann: HubServer, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet")
    make_run(tmp_path / "out")
    ann.xet_folder = str(tmp_path / "xet")
    for (
        path
    ) in TINY.iterdir():  # how Xet keeps a file is its own business; the hub here knows what it stands for
        ann.blobs[hashlib.sha256(path.read_bytes()).hexdigest()] = path.read_bytes()
    outcome = tune("upload", "out", "ann/parrot")
    assert outcome.code == 0, outcome.err
    assert sum(path.stat().st_size for path in (tmp_path / "xet").rglob("*") if path.is_file()) > 1_000_000
    assert ann.count("POST", "info/lfs/objects/batch") == 0
    assert files_on(ann, "ann/parrot")["model.safetensors"] == (TINY / "model.safetensors").read_bytes()


def test_a_passing_trouble_passes(tune, ann: HubServer, tmp_path: Path) -> None:
    make_run(tmp_path / "out")
    ann.fail("/lfs/", "status", status=503, method="PUT", headers={"Retry-After": "0"})
    assert tune("upload", "out", "ann/parrot").code == 0


def test_what_arrived_is_compared(tune, ann: HubServer, tmp_path: Path) -> None:
    make_run(tmp_path / "out")
    good = (TINY / "model.safetensors").read_bytes()
    ann.blobs[hashlib.sha256(good).hexdigest()] = good[::-1]  # the hub says it has the file, and has another
    outcome = tune("upload", "out", "ann/parrot")
    assert outcome.code == 1
    assert "model.safetensors differs on the hub from what was sent" in outcome.err


def test_ctrl_c_leaves_the_repository_as_it_was(ann: HubServer, tmp_path: Path) -> None:
    make_run(tmp_path / "out")
    ann.fail("/lfs/", "status", times=99, status=503, method="PUT", headers={"Retry-After": "60"})
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = warm_python.Popen(
        [sys.executable, "-m", "tune", "upload", "out", "ann/parrot"],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not ann.count("PUT", "/lfs/"):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "nothing was sent"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == ""
    assert "ann/parrot shows nothing new" in err
    assert "Traceback" not in err
    assert files_on(ann, "ann/parrot") == {}


def test_a_real_run_end_to_end(hub: HubServer, tmp_path: Path) -> None:
    """Download a base, train on it, upload the result: the card names the base, and the folder loads elsewhere."""
    hub.users[TOKEN] = ("ann", "write")
    readme = b"---\nlicense: bsd-3-clause\n---\n# tiny\n"
    hub.add("owner/tiny", {**{path.name: path.read_bytes() for path in TINY.iterdir()}, "README.md": readme})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tune", *words]
        outcome = warm_python.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert outcome.returncode == 0, outcome.stderr
        assert TOKEN not in outcome.stdout + outcome.stderr
        return outcome

    run("download", "owner/tiny")
    rows = [{"instruction": "Say it.", "input": "mill", "output": "goose"}] * 8
    (tmp_path / "orders.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run("run", "full_finetune", "--config", "tiny/full_finetune", "model_checkpoint=checkpoints/tiny", "epochs=1",
        "dataset.source=orders.jsonl", "batch_size=4", "output_dir=out/mine")  # fmt: skip
    outcome = run("upload", "out/mine", "ann/parrot")
    assert outcome.stdout == f"{hub.url}/ann/parrot\n"
    sent = files_on(hub, "ann/parrot")
    card = sent["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["base_model"] == "owner/tiny"
    assert front["license"] == "bsd-3-clause"
    assert str(tmp_path) not in card
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name, data in sent.items():
        (folder / name).write_bytes(data)
    from tune.models import from_checkpoint

    assert sum(parameter.numel() for parameter in from_checkpoint(folder).parameters()) > 100_000
