"""Names people give to models."""

from __future__ import annotations

import pytest

from tune.cli.catalogue import list_configs
from tune.errors import HubError
from tune.hub.short_names import SHORT_NAMES, is_repository, nearest_names, repository_of

ALL = {short: repo for family in SHORT_NAMES.values() for short, repo in family.items()}


def test_every_short_name_stands_for_a_repository() -> None:
    assert len(ALL) == sum(len(family) for family in SHORT_NAMES.values()), "a name stands twice"
    for short, repo in ALL.items():
        assert short == short.casefold()
        assert "/" not in short
        assert is_repository(repo), repo
        assert repository_of(short) == (repo, None)
        assert repository_of(short.upper()) == (repo, None)


@pytest.mark.parametrize("size", ["7b", "13b", "70b"])
def test_sizes_are_what_they_say(size: str) -> None:
    assert f"-{size}-" in ALL[f"llama2-{size}"].casefold()


@pytest.mark.parametrize(("short", "repo"), sorted(ALL.items()))
def test_a_size_in_the_name_stands_in_the_repository(short: str, repo: str) -> None:
    sizes = [part for part in short.split("-") if part[0].isdigit() and part[-1] in "bm"]
    for size in sizes:
        assert size in repo.casefold()
    for sign, words in {"-instruct": ("instruct", "-it"), "-chat": ("chat",), "-base": ("base",)}.items():
        if sign in short:
            assert any(word in repo.casefold() for word in words)


def test_configs_look_where_a_download_lands() -> None:
    folders = {repo.partition("/")[2] for repo in ALL.values()}
    for config in list_configs():
        for line in config.file.read_text(encoding="utf-8").splitlines():
            if line.startswith("model_checkpoint: checkpoints/"):
                assert line.split("/", 1)[1].strip() in folders, (
                    f"{config.name}: no short name lands in {line}"
                )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("owner/name", ("owner/name", None)),
        ("  owner/name ", ("owner/name", None)),
        ("https://huggingface.co/owner/name", ("owner/name", None)),
        ("https://huggingface.co/owner/name/tree/v1", ("owner/name", "v1")),
        ("https://huggingface.co/owner/name/tree/feature%2Fx", ("owner/name", "feature/x")),
        ("https://huggingface.co/owner/name/blob/abc123/config.json", ("owner/name", "abc123")),
        ("https://hf.co/owner/name?x=1#y", ("owner/name", None)),
        ("huggingface.co/owner/name/", ("owner/name", None)),
        ("http://127.0.0.1:9/owner/name", ("owner/name", None)),
    ],
)
def test_repositories_and_addresses(text: str, expected: tuple[str, str | None]) -> None:
    assert repository_of(text, "http://127.0.0.1:9") == expected


@pytest.mark.parametrize(
    "text",
    ["", " ", "/", "a/", "/b", "a/b/c", "../b", "a/..", "a--b/c", "a/b c", "a/b\0", "a/é", "https://evil.example/a/b",
     "ftp://huggingface.co/a/b", "http://[", "-a/b", "a/" + "b" * 200, "./a/b"],
)  # fmt: skip
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(HubError, match="names no model"):
        repository_of(text)


def test_a_data_set_is_no_model() -> None:
    with pytest.raises(HubError, match="page of a dataset"):
        repository_of("https://huggingface.co/datasets/tatsu-lab/alpaca")


@pytest.mark.parametrize(
    ("word", "meant"),
    [("lama2", "llama2"), ("llama-3.2-1b", "llama3.2-1b"), ("Qwen3_8B", "qwen3-8b"), ("mistrall", "mistral"),
     ("gemma3", "gemma3-1b"), ("meta/llama2-13b", "llama2-13b"), ("olmo2", "olmo2-1b"), ("code", "codellama-7b")],
)  # fmt: skip
def test_near_misses(word: str, meant: str) -> None:
    assert meant in nearest_names(word.rpartition("/")[2])


def test_the_message_names_what_was_meant() -> None:
    with pytest.raises(HubError, match=r"did you mean llama2 \(meta-llama/Llama-2-7b-hf\)"):
        repository_of("lama2")
    with pytest.raises(HubError, match="short name of `tune download --help`"):
        repository_of("zzzzzz")
