"""Who may read our files: the home folder 0700, files 0600, nobody else's, never behind a symbolic link.

This module is on the path of `valetkey token`: it imports next to nothing.
"""

import os
import stat

from valetkey.errors import ForeignStore, StoreUnwritable, WrongMode

TYPE_CHECKING = False  # as in typing, which costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_file", "check_folder", "create_file", "file_at", "is_locked", "own_folder", "sync_folder"]


def check_folder(path: str) -> bool:
    """Say whether the folder is there. Raises: WrongMode, ForeignStore."""
    return _check(path, stat.S_ISDIR, "folder", "700")


def check_file(path: str) -> bool:
    """Say whether the file is there. Raises: WrongMode, ForeignStore."""
    return _check(path, stat.S_ISREG, "file", "600")


def own_folder(path: str) -> None:
    """See that the folder is there and ours alone. Raises: WrongMode, ForeignStore, StoreUnwritable.

    It is made with mode 0700 whatever the umask says, its parents by the umask.
    """
    if check_folder(path):
        return
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)  # the umask may have taken from it
    except FileExistsError:
        check_folder(path)
    except OSError as error:
        raise _unwritable(path, error) from error


def create_file(path: str, content: bytes = b"") -> None:
    """Make it with mode 0600 and this content, durable on return. Raises: FileExistsError, StoreUnwritable."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        os.unlink(path)
        raise _unwritable(path, error) from error
    sync_folder(os.path.dirname(path))


def file_at(path: "str | os.PathLike[str]") -> "tuple[int, int] | None":
    """Give what tells this file from another one that is put in its place; None where there is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def is_locked(path: str) -> bool:
    """Say whether anybody holds the lock that this file is (`locks.try_lock_file`)."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        # Shared, so that two who ask at once do not take each other for its holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def sync_folder(path: str) -> None:
    """Make the names in it durable."""
    descriptor = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(path: str, is_kind: "Callable[[int], bool]", kind: str, mode: str) -> bool:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    if stat.S_ISLNK(status.st_mode):
        raise WrongMode(
            f"{path} is a symbolic link", hint="name the real folder in VALETKEY_HOME, or put the real file there"
        )
    if not is_kind(status.st_mode):
        raise ForeignStore(f"{path} is not a {kind}", hint=f"move it away: {_command('mv', path, path + '.aside')}")
    if status.st_uid != os.geteuid():
        raise WrongMode(
            f"{path} belongs to another user",
            hint=f"run as its owner, or: {_command('chown', str(os.geteuid()), path)}",
        )
    if status.st_mode & 0o077:
        raise WrongMode(f"{path} is open to other users", hint=f"run `{_command('chmod', mode, path)}`")
    return True


def _command(*words: str) -> str:
    import shlex  # only where something is wrong: it costs milliseconds

    return shlex.join(words)


def _unwritable(path: str, error: OSError | ValueError) -> StoreUnwritable:
    reason = getattr(error, "strerror", None) or str(error)
    return StoreUnwritable(
        f"{path} cannot be used: {reason.lower()}",
        hint="make the folder writable, free some space, or name another folder in VALETKEY_HOME",
    )
