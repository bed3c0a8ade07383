"""Git clones and pushes: straight, by base URL, and through the proxy, where it has a valet key alone."""

from __future__ import annotations

import secrets
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from tests.support.proofs import assert_credentials_stay
from tests.support.repositories import Repository, create, git_environ
from tests.support.upstreams import Upstreams
from tests.support.ways import Access, Reach, Way
from tests.support.workplace import Workplace

# More than git holds back (http.postBuffer, 1 MiB): so that it sends the pack in chunks, and asks first.
LARGE = 3 << 20


@pytest.fixture
def repository(upstreams: Upstreams) -> tuple[str, Repository]:
    """Give a repository of this test's own, by its path."""
    name = f"owner/{secrets.token_hex(4)}.git"
    return name, create(upstreams.git_folder, name, {"README": "begin\n"})


def address(access: Access, name: str, *, key: bool = True) -> str:
    parts = urlsplit(f"{access.base_url}/{name}")
    user = f"x-access-token:{quote(access.key)}@" if key else ""
    return parts._replace(netloc=user + parts.netloc).geturl()


def clone_and_push(workplace: Workplace, access: Access, url: str) -> Path:
    environ = {n: v for n, v in git_environ(workplace.home).items() if n != "PATH"}

    def git(*words: str) -> None:
        done = workplace.run(["git", *words], access, environ)
        assert done.status == 0, done.err

    git("clone", "-q", url, "work")
    work = workplace.folder / "work"
    (work / "large").write_bytes(secrets.token_bytes(LARGE))
    git("-C", "work", "add", ".")
    git("-C", "work", "commit", "-q", "-m", "a large file")
    git("-C", "work", "push", "-q", "origin", "main")
    git("-C", "work", "fetch", "-q", "origin")
    return work


def test_git_clones_and_pushes(
    way: Way, reach: Reach, upstreams: Upstreams, workplace: Workplace, repository: tuple[str, Repository]
) -> None:
    name, bare = repository
    access = reach("forge")
    # By proxy it has no credential at all: what it would ask for is put in before the server can ask.
    work = clone_and_push(workplace, access, address(access, name, key=way != "proxy"))
    assert (work / "README").read_text() == "begin\n"
    assert bare.git("log", "--format=%s", "main").split("\n") == ["a large file", "begin", ""]
    packs = [r for r in upstreams["forge"].server.requests if r.path.endswith("/git-receive-pack")]
    assert max(len(r.body) for r in packs) > LARGE
    if way != "direct":
        assert_credentials_stay(way, upstreams["forge"], access, workplace)


@pytest.mark.parametrize("way", ["proxy"], indirect=True)
def test_git_works_with_github_by_its_name(
    way: Way, reach: Reach, upstreams: Upstreams, workplace: Workplace, repository: tuple[str, Repository]
) -> None:
    """The declaration that comes with Valetkey: Basic for github.com, where its API takes Bearer."""
    name, bare = repository
    access = reach("github")
    clone_and_push(workplace, access, address(access, name, key=False))
    assert bare.git("log", "--format=%s", "main").split("\n") == ["a large file", "begin", ""]
    assert upstreams.asked_outside == {"github.com:443"}
    assert_credentials_stay(way, upstreams["github"], access, workplace)
