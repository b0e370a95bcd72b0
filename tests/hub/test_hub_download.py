"""Transfers against a hub on loopback: complete, verified, resumed; and what is said when they are not."""

from __future__ import annotations

import json
import random
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from hub_server import HubServer, git_digest

import tune.utils.hub_access
from tune.errors import HubError
from tune.hub.download import download, read_origin
from tune.hub.listing import look_up
from tune.hub.selection import select_files
from tune.hub.transfer import CHUNK, partial_file
from tune.utils.hub_access import Hub, connect

WEIGHTS = random.Random(3).randbytes(300_007)
# So long that a part of it is worth keeping: what a lost connection loses is less than CHUNK.
LONG = random.Random(4).randbytes(2 * CHUNK + 1009)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "empty.txt": b"",
    "sub/notes.md": b"x" * 999,
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tries, without the waiting between them."""
    monkeypatch.setattr(tune.utils.hub_access, "WAITS", (0.0,) * 5)


def fetch(
    hub: HubServer, folder: Path, token: str | None = None, revision: str | None = None
) -> tuple[int, dict[str, bool]]:
    """Return how many bytes came, and of each file whether it had to be fetched."""
    seen: dict[str, bool] = {}
    connection = connect(token)
    repository = look_up(connection, "a/b", revision)
    files = select_files(repository, [""]).files
    num_bytes = download(
        connection, repository, files, folder, lambda file, fetched: seen.update({file.name: fetched})
    )
    return num_bytes, seen


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".tune_download" not in path.parts
    }


def test_every_file_arrives(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", FILES)
    num_bytes, seen = fetch(hub, tmp_path / "m")
    assert content(tmp_path / "m") == FILES
    assert num_bytes == sum(map(len, FILES.values()))
    assert seen == dict.fromkeys(FILES, True)
    origin = read_origin(tmp_path / "m")
    assert origin is not None
    assert origin.repo == "a/b"
    assert set(origin.digests) == set(FILES)
    assert not list((tmp_path / "m").rglob("*.part"))


def test_a_second_time_fetches_nothing(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", FILES)
    fetch(hub, tmp_path)
    before = hub.count("GET", "/resolve/")
    num_bytes, seen = fetch(hub, tmp_path)
    assert num_bytes == 0
    assert seen == dict.fromkeys(FILES, False)
    assert hub.count("GET", "/resolve/") == before


@pytest.mark.parametrize("damage", ["short", "long", "flipped", "gone"])
def test_a_damaged_file_is_found_and_fetched_again(hub: HubServer, tmp_path: Path, damage: str) -> None:
    hub.add("a/b", FILES)
    fetch(hub, tmp_path)
    victim = tmp_path / "model-00002-of-00002.safetensors"
    data = victim.read_bytes()
    flipped = data[:70_000] + bytes([data[70_000] ^ 4]) + data[70_001:]
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes({"short": data[:-1], "long": data + b"x", "flipped": flipped}[damage])
    num_bytes, seen = fetch(hub, tmp_path)
    assert num_bytes == len(data)
    assert [name for name, fetched in seen.items() if fetched] == [victim.name]
    assert content(tmp_path) == FILES


def test_a_lost_connection_goes_on_where_it_stopped(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", {"model.safetensors": LONG})
    hub.fail("/blob/", "cut", after=CHUNK + 7)
    num_bytes, _ = fetch(hub, tmp_path)
    assert content(tmp_path) == {"model.safetensors": LONG}
    assert [h.get("range") for _, _, h in hub.storage_requests] == [None, f"bytes={CHUNK}-"]
    assert num_bytes == len(LONG)


def test_a_later_run_goes_on_where_one_gave_up(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", {"model.safetensors": LONG})
    hub.fail("/blob/", "cut", after=CHUNK + 7)
    hub.fail("/blob/", "status", times=99, status=503)
    with pytest.raises(
        HubError, match=r"1,048,576 of the 2,098,161 bytes of model.safetensors have arrived and are kept"
    ):
        fetch(hub, tmp_path)
    assert content(tmp_path) == {}, "nothing may look complete"
    assert [part.stat().st_size for part in tmp_path.rglob("*.part")] == [CHUNK]
    hub.faults.clear()
    hub.storage_requests.clear()
    fetch(hub, tmp_path)
    assert [h.get("range") for _, _, h in hub.storage_requests] == [f"bytes={CHUNK}-"]
    assert content(tmp_path) == {"model.safetensors": LONG}


def test_a_storage_host_that_never_answers(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", {"model.safetensors": WEIGHTS})
    hub.fail("/blob/", "drop", times=99)
    with pytest.raises(HubError, match="cannot be reached"):
        fetch(hub, tmp_path)
    assert content(tmp_path) == {}


def test_a_server_that_cannot_go_on_starts_over(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", {"model.safetensors": LONG})
    hub.fail("/blob/", "cut", after=CHUNK + 7)
    hub.fail("/blob/", "no_range")
    fetch(hub, tmp_path)
    assert content(tmp_path) == {"model.safetensors": LONG}


@pytest.mark.parametrize("found", [WEIGHTS[:1000][::-1], WEIGHTS + b"more", WEIGHTS[:-1] + b"\0"])
def test_a_partial_file_that_is_wrong_is_thrown_away(hub: HubServer, tmp_path: Path, found: bytes) -> None:
    hub.add("a/b", {"model.safetensors": WEIGHTS})
    (file,) = look_up(connect(None), "a/b").files
    part = partial_file(tmp_path, file)
    part.parent.mkdir()
    part.write_bytes(found)
    fetch(hub, tmp_path)
    assert content(tmp_path) == {"model.safetensors": WEIGHTS}


def test_damage_on_the_way_is_repaired_once(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", FILES)
    hub.fail("/blob/", "corrupt")
    hub.fail("config.json", "corrupt", method="GET")
    fetch(hub, tmp_path)
    assert content(tmp_path) == FILES


@pytest.mark.parametrize("name", ["model-00001-of-00002.safetensors", "config.json"])
def test_damage_that_stays_is_named(hub: HubServer, tmp_path: Path, name: str) -> None:
    hub.add("a/b", {name: FILES[name]})
    hub.fail("blob" if len(FILES[name]) > 1000 else name, "corrupt", times=2, method="GET")
    with pytest.raises(HubError, match=f"{name} of a/b arrived damaged twice: its digest is "):
        fetch(hub, tmp_path)
    assert content(tmp_path) == {}
    assert not list(tmp_path.rglob("*.part")), "what is damaged must not be continued"
    fetch(hub, tmp_path)
    assert content(tmp_path) == {name: FILES[name]}


def test_a_page_of_a_proxy_is_no_model(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", {"model.safetensors": WEIGHTS})
    hub.fail("/resolve/", "html", times=2)
    with pytest.raises(HubError, match="a web page came in its place"):
        fetch(hub, tmp_path)
    hub.fail("/api/models", "html")
    with pytest.raises(HubError, match="did not answer as the hub does"):
        fetch(hub, tmp_path)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_passing_troubles_pass(hub: HubServer, tmp_path: Path, status: int) -> None:
    hub.add("a/b", FILES)
    hub.fail("/api/models", "status", status=status, times=2)
    hub.fail("/blob/", "status", status=status, times=2)
    hub.fail("config.json", "status", status=status, headers={"Retry-After": "0"})
    fetch(hub, tmp_path)
    assert content(tmp_path) == FILES


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (500, r"problem of its own \(HTTP 500\)"),
        (429, "too many requests"),
        (418, r"refused the request \(HTTP 418\)"),
    ],
)
def test_lasting_troubles_are_explained(hub: HubServer, tmp_path: Path, status: int, words: str) -> None:
    hub.add("a/b", FILES)
    hub.fail("/api/models", "status", status=status, times=99, body='{"error": "so it is"}')
    with pytest.raises(HubError, match=words) as caught:
        fetch(hub, tmp_path)
    assert "so it is" in str(caught.value)


def test_a_long_wait_is_not_waited_for(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", FILES)
    hub.fail("/api/models", "status", times=99, status=429, headers={"Retry-After": "3600"})
    with pytest.raises(HubError, match="too many requests"):
        fetch(hub, tmp_path)


def test_the_token_goes_to_the_hub_alone(hub: HubServer, tmp_path: Path) -> None:
    hub.users["hf_secret"] = ("ann", "read")
    hub.add("a/b", FILES, private=True, members={"ann"})
    fetch(hub, tmp_path, token="hf_secret")
    assert content(tmp_path) == FILES
    assert all(h.get("authorization") == "Bearer hf_secret" for _, _, h in hub.requests)
    assert hub.storage_requests
    assert not any("authorization" in h for _, _, h in hub.storage_requests)
    assert "hf_secret" not in "".join(p.read_text() for p in (tmp_path / ".tune_download").iterdir())
    assert "hf_secret" not in repr(connect("hf_secret"))


def test_gated_models(hub: HubServer, tmp_path: Path) -> None:
    hub.users |= {"hf_in": ("ann", "read"), "hf_out": ("bob", "read")}
    hub.add("a/b", FILES, gated=True, members={"ann"})
    with pytest.raises(HubError) as caught:
        fetch(hub, tmp_path)
    message = str(caught.value)
    for words in (f"accept them at {hub.url}/a/b", "https://huggingface.co/settings/tokens", "--hf-token TOKEN",
                  "HF_TOKEN", "`hf auth login`"):  # fmt: skip
        assert words in message
    with pytest.raises(HubError, match="not been let in yet") as caught:
        fetch(hub, tmp_path, token="hf_out")
    assert "Your request awaits a review" in str(caught.value)
    assert set(content(tmp_path)) <= {"empty.txt"}
    fetch(hub, tmp_path, token="hf_in")
    assert content(tmp_path) == FILES


def test_missing_models_and_bad_tokens(hub: HubServer, tmp_path: Path) -> None:
    hub.users["hf_ok"] = ("ann", "read")
    hub.add("a/secret", FILES, private=True)
    for repo in ("a/secret", "meta-llama/Llama-3.2-1b-chat"):
        with pytest.raises(HubError, match=f"there is no model {repo} at .* or it is private; .*HF_TOKEN"):
            look_up(connect(None), repo)
    with pytest.raises(HubError, match=r"that the token \(--hf-token\) may see"):
        look_up(connect("hf_ok"), "a/secret")
    with pytest.raises(HubError, match=r"does not accept the token \(--hf-token\)"):
        look_up(connect("hf_no"), "a/secret")
    with pytest.raises(HubError, match=r"Short names that come close: .*llama3.2-1b"):
        look_up(connect(None), "meta-llama/Llama-3.2-1b-chat")


def test_where_a_token_came_from(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("a/b", FILES)
    monkeypatch.setenv("HF_TOKEN", "hf_variable")
    with pytest.raises(HubError, match=r"does not accept the token \(HF_TOKEN\)"):
        look_up(connect(None), "a/b")
    for bad in ("", " ", "hf with space", "hf_ü", "hf\nx: y"):
        with pytest.raises(HubError, match="no token has"):
            connect(bad)


def test_a_token_that_cannot_be_read(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    Path(constants.HF_TOKEN_PATH).write_bytes(b"\xff\xfe")
    with pytest.raises(HubError, match="`hf auth login` cannot be read"):
        connect(None)
    monkeypatch.setenv("HF_OIDC_RESOURCE", "x")
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    with pytest.raises(HubError, match=r"there is no token: .*HF_OIDC_RESOURCE"):
        connect(None)


def test_a_server_that_repeats_the_token(hub: HubServer) -> None:
    hub.users["hf_secret"] = ("ann", "read")
    hub.add("a/b", FILES)
    hub.fail("/api/models", "status", status=418, body='{"error": "bad header: Bearer hf_secret"}')
    with pytest.raises(HubError, match=r"Bearer \*\*\*") as caught:
        look_up(connect("hf_secret"), "a/b")
    assert "hf_secret" not in str(caught.value)


def test_revisions(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.add("a/b", FILES)
    repo.branches["feature/x"] = {"model.safetensors": b"other"}
    fetch(hub, tmp_path / "x", revision="feature/x")
    assert content(tmp_path / "x") == {"model.safetensors": b"other"}
    fetch(hub, tmp_path / "c", revision=repo.commit_of("main"))
    assert content(tmp_path / "c") == FILES
    with pytest.raises(HubError, match=r"no branch, tag or commit 'v9'; there are main, feature/x"):
        fetch(hub, tmp_path / "v", revision="v9")


def test_a_newer_revision_replaces_what_came_from_the_older(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.add("a/b", FILES)
    fetch(hub, tmp_path)
    repo.branches["main"] = {**FILES, "config.json": b"{}", "model-00001-of-00002.safetensors": WEIGHTS[1:]}
    _, seen = fetch(hub, tmp_path)
    assert sorted(name for name, fetched in seen.items() if fetched) == [
        "config.json",
        "model-00001-of-00002.safetensors",
    ]
    assert content(tmp_path) == repo.branches["main"]


def test_what_a_newer_revision_has_no_more_is_set_aside(hub: HubServer, tmp_path: Path) -> None:
    repo = hub.add("a/b", FILES)
    fetch(hub, tmp_path)
    repo.branches["main"] = {"config.json": b"{}", "model.safetensors": WEIGHTS[:5000]}
    fetch(hub, tmp_path)
    found = content(tmp_path)
    assert {name for name in found if not name.endswith(".old")} == {"config.json", "model.safetensors"}
    assert found["model-00001-of-00002.safetensors.old"] == WEIGHTS
    fetch(hub, tmp_path)
    assert content(tmp_path) == found, "it is over after one time"


def test_files_of_others_are_never_overwritten(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", FILES)
    (tmp_path / "config.json").write_bytes(b"precious")
    (tmp_path / "config.json.old").write_bytes(b"also precious")
    (tmp_path / "mine.txt").write_bytes(b"mine")
    fetch(hub, tmp_path)
    others = {"config.json.old": b"also precious", "config.json.old2": b"precious", "mine.txt": b"mine"}
    assert content(tmp_path) == {**FILES, **others}


def test_an_edited_config_is_set_aside(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", FILES)
    fetch(hub, tmp_path)
    (tmp_path / "config.json").write_bytes(b"edited")
    fetch(hub, tmp_path)
    assert content(tmp_path) == {**FILES, "config.json.old": b"edited"}


def test_a_folder_of_another_model_is_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", FILES)
    fetch(hub, tmp_path)
    hub.add("x/y", {"config.json": b"1"})
    repository = look_up(connect(None), "x/y")
    with pytest.raises(HubError, match="holds a/b; give another --output-dir for x/y"):
        download(connect(None), repository, repository.files, tmp_path, print)
    assert content(tmp_path) == FILES


def test_a_link_that_leads_out_is_refused(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", FILES)
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "sub").symlink_to(outside)
    with pytest.raises(HubError, match=r"sub/notes.md of a/b would be written outside"):
        fetch(hub, folder)
    shutil.rmtree(folder / ".tune_download")
    (folder / ".tune_download").symlink_to(outside)
    with pytest.raises(HubError, match=r"would be written outside"):
        fetch(hub, folder)
    assert list(outside.iterdir()) == []


def test_a_link_in_place_of_a_file_is_replaced_not_followed(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", {"config.json": b"new"})
    victim = tmp_path / "victim"
    victim.write_bytes(b"untouched")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").symlink_to(victim)
    fetch(hub, folder)
    assert victim.read_bytes() == b"untouched"
    assert (folder / "config.json").read_bytes() == b"new"
    assert not (folder / "config.json").is_symlink()


@pytest.mark.parametrize("name", ["../../escaped", "/tmp/escaped", "a\\..\\b", ".git/config"])
def test_a_hostile_repository_writes_nothing(hub: HubServer, tmp_path: Path, name: str) -> None:
    hub.add("a/b", {"config.json": b"{}", name: b"evil"})
    with pytest.raises(HubError, match="An honest repository has no such file"):
        fetch(hub, tmp_path / "deep" / "model")
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_said_before(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("a/b", FILES)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1, 1, 12_345_678))
    with pytest.raises(HubError, match=r"has 0.01 GB free, 0.00 GB are still to come"):
        fetch(hub, tmp_path)
    assert hub.count("GET", "/resolve/") == 0


@pytest.mark.parametrize("folder", ["/proc/nowhere/x", "/dev/null/x"])
def test_a_folder_that_cannot_be_written(hub: HubServer, folder: str) -> None:
    hub.add("a/b", FILES)
    with pytest.raises(HubError, match=r"cannot be written: .*--output-dir"):
        fetch(hub, Path(folder))


def test_a_folder_in_the_way_of_a_file(hub: HubServer, tmp_path: Path) -> None:
    hub.add("a/b", {"config.json": b"{}"})
    (tmp_path / "config.json" / "x").mkdir(parents=True)
    with pytest.raises(HubError, match=r"config.json \(2 bytes\) cannot be written: Is a directory"):
        fetch(hub, tmp_path)


def test_what_is_too_large_for_http_comes_by_xet(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils._xet import get_xet_session

    hub.users["hf_x"] = ("ann", "write")
    hub.add("a/b", {"config.json": b"{}", "sub/model.safetensors": LONG}, writers={"ann"})
    hub.xet_folder = str(tmp_path / "xet")
    address = f"{hub.url}/api/models/a/b/xet-write-token/main"
    headers = {"authorization": "Bearer hf_x"}
    with get_xet_session().new_upload_commit(
        token_refresh_url=address, token_refresh_headers=headers
    ) as commit:
        sent = commit.start_upload_bytes(LONG)
    info = sent.result().xet_info
    hub.xet_hashes[info.sha256] = info.hash
    monkeypatch.setattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", len(LONG) - 1)
    num_bytes, _ = fetch(hub, tmp_path / "m")
    assert content(tmp_path / "m") == {"config.json": b"{}", "sub/model.safetensors": LONG}
    assert num_bytes == len(LONG) + 2
    assert hub.storage_requests == [], "Xet has a way of its own"
    assert {path.name for path in (tmp_path / "m" / ".tune_download").iterdir()} == {"origin.json", "lock"}


def test_what_is_told_of_a_file(hub: HubServer) -> None:
    hub.add("a/b", FILES)
    files = {file.name: file for file in look_up(connect(None), "a/b").files}
    assert files["config.json"].digest == git_digest(FILES["config.json"])
    assert len(files["model-00001-of-00002.safetensors"].digest) == 64


@pytest.mark.parametrize(
    "answer", ["[]", "{}", '{"id": "a/b"}', '{"id": "a/b", "sha": "../x", "siblings": []}', "nul"]
)
def test_answers_that_make_no_sense(hub: HubServer, answer: str) -> None:
    hub.fail("/api/models", "status", status=200, body=answer)
    with pytest.raises(HubError, match="check HF_ENDPOINT"):
        look_up(connect(None), "a/b")


@pytest.mark.parametrize(
    "entry",
    [{}, {"path": 5}, {"path": "a", "lfs": {}}, {"size": "7"}, {"size": -1}, {"oid": "../x"}, {"oid": None}],
)
def test_a_listing_that_makes_no_sense(hub: HubServer, entry: dict[str, object]) -> None:
    hub.add("a/b", FILES)
    whole = {"type": "file", "path": "a", "size": 7, "oid": "0" * 40} if entry else {"type": "file"}
    hub.fail("/tree/", "status", status=200, body=json.dumps([{**whole, **entry}]))
    with pytest.raises(HubError, match="check HF_ENDPOINT"):
        look_up(connect(None), "a/b")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://127.0.0.1:9", "Connection refused"),
        ("http://no-such-host.invalid", "is not known here"),
        ("no address", "HF_ENDPOINT"),
        ("http://[", "HF_ENDPOINT"),
        ("ftp://127.0.0.1", "unsupported protocol"),
        ("file:///etc", "HF_ENDPOINT"),
    ],
)
def test_no_network(monkeypatch: pytest.MonkeyPatch, hub: HubServer, address: str, words: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(HubError, match=words):
        look_up(connect(None), "a/b")


def test_the_first_failure_waits_for_no_others(hub: HubServer, tmp_path: Path) -> None:
    files = {f"model-{n}.safetensors": WEIGHTS for n in range(12)}
    hub.add("a/b", files)
    held = hub.fail("/blob/", "hold", times=99)
    hub.faults.insert(0, hub.fail("model-3.", "status", status=418))
    with pytest.raises(HubError, match="HTTP 418"):
        fetch(hub, tmp_path)
    assert content(tmp_path) == {}
    held.release.set()


def test_the_record_survives_nonsense(tmp_path: Path) -> None:
    assert read_origin(tmp_path) is None
    (tmp_path / ".tune_download").mkdir()
    for text in ("", "[]", "{}", '{"repo": 1}', json.dumps({"repo": "a/b", "commit": "c", "files": 3}),
                 json.dumps({"repo": "a/b](http://x)", "commit": "c", "files": {}})):  # fmt: skip
        (tmp_path / ".tune_download" / "origin.json").write_text(text)
        assert read_origin(tmp_path) is None


def test_a_hub_does_not_show_its_token() -> None:
    assert "abc" not in repr(Hub("http://x", "hf_abc", "--hf-token"))
