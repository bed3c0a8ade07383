"""What a running gateway keeps in the file system."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from valetkey import serving
from valetkey.config import Paths
from valetkey.errors import GatewayFailed, WrongMode
from valetkey.gateway import place as places
from valetkey.gateway.place import LONGEST, Place


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """Give a home whose path is too long for a socket."""
    home = tmp_path / ("h" * 120)
    home.mkdir(mode=0o700)
    yield home
    shutil.rmtree(Place(Paths(home=home), {}).sockets, ignore_errors=True)


def test_there_is_one_gateway_for_a_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_LOCK_SECONDS", 0.02)
    one, other = Place(Paths(home=home), {}), Place(Paths(home=home), {})
    one.claim()
    one.publish({"pid": 4711, "control": str(one.control)})
    with pytest.raises(GatewayFailed, match=r"runs already \(process 4711\)") as caught:
        other.claim()
    assert "valetkey down" in caught.value.hint
    one.leave()
    other.claim()
    other.leave()


def test_who_asks_whether_it_lives_does_not_keep_it_from_starting(home: Path) -> None:
    import fcntl
    import threading

    place = Place(Paths(home=home), {})
    place.claim()
    place.leave()
    with open(home / "run" / serving.LOCK, "rb") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        letting_go = threading.Timer(0.05, lambda: fcntl.flock(asking, fcntl.LOCK_UN))
        letting_go.start()
        place.claim()
        letting_go.join()
    place.leave()


def test_what_a_killed_one_left_is_cleared_away_before_anybody_can_believe_it(home: Path) -> None:
    place = Place(Paths(home=home), {})
    place.claim()
    place.listen(place.control).close()
    place.listen(place.gateway).close()
    place.publish({"control": str(place.control)})
    # Killed: what it held is let go of, what it wrote stays.
    assert place._lock is not None
    place._lock.release()
    again = Place(Paths(home=home), {})
    again.claim()
    assert sorted(os.listdir(home / "run")) == [serving.LOCK]
    again.listen(again.control).close()
    again.leave()


def test_everything_has_its_mode_whatever_the_umask_is(home: Path) -> None:
    before = os.umask(0)
    try:
        place = Place(Paths(home=home), {})
        place.claim()
        with place.listen(place.control):
            place.publish({"control": str(place.control)})
            modes = {path.name: mode(path) for path in (home / "run").iterdir()}
        place.leave()
    finally:
        os.umask(before)
    assert modes == {serving.LOCK: 0o600, serving.ABOUT: 0o600, serving.CONTROL: 0o600}
    assert mode(home / "run") == 0o700
    assert os.listdir(home / "run") == [serving.LOCK]


def test_sockets_of_a_home_with_a_long_path_lie_in_a_short_folder_of_its_own(deep: Path) -> None:
    place = Place(Paths(home=deep), {})
    place.claim()
    assert len(os.fsencode(place.control)) <= LONGEST
    with place.listen(place.control), place.listen(place.gateway):
        assert mode(place.sockets) == 0o700
        assert mode(place.control) == mode(place.gateway) == 0o600
    assert Place(Paths(home=deep), {}).sockets == place.sockets
    assert Place(Paths(home=deep.parent / ("g" * 120)), {}).sockets != place.sockets
    place.leave()
    assert not place.sockets.exists()


def test_the_folder_of_the_session_is_taken_where_it_is_ours_alone(deep: Path, tmp_path: Path) -> None:
    runtime = Path("/tmp", f"valetkey-test-{os.getpid()}")
    runtime.mkdir(mode=0o700)
    try:
        place = Place(Paths(home=deep), {"XDG_RUNTIME_DIR": str(runtime)})
        assert place.sockets.parent == runtime
        runtime.chmod(0o755)
        assert place.sockets.parent == Path("/tmp")
    finally:
        runtime.rmdir()
    assert Place(Paths(home=deep), {"XDG_RUNTIME_DIR": "relative"}).sockets.parent == Path("/tmp")


@pytest.mark.parametrize("trap", ["link", "open"])
def test_a_folder_that_somebody_else_could_have_laid_there_is_refused(deep: Path, tmp_path: Path, trap: str) -> None:
    place = Place(Paths(home=deep), {})
    if trap == "link":
        place.sockets.symlink_to(tmp_path)
    else:
        place.sockets.mkdir()
        place.sockets.chmod(0o777)
    try:
        with pytest.raises(WrongMode):
            place.claim()
    finally:
        if trap == "link":
            place.sockets.unlink()


def test_a_home_that_was_removed_or_put_aside_is_ours_no_more(home: Path) -> None:
    place = Place(Paths(home=home), {})
    assert not place.is_ours()
    place.claim()
    assert place.is_ours()
    aside = home.rename(home.parent / "aside")
    assert not place.is_ours()
    other = Place(Paths(home=home), {})
    other.claim()
    other.publish({"control": str(other.control)})
    assert not place.is_ours()
    place.leave()  # takes nothing away that is the other's
    assert (home / "run" / serving.ABOUT).exists()
    assert other.is_ours()
    other.leave()
    assert (aside / "run" / serving.LOCK).exists()
