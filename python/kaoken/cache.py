"""What bakes leave behind: the cache's directory, its locks, and files written whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kaoken.errors import BuildError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def cache_directory() -> Path:
    """$KAOKEN_CACHE, else $XDG_CACHE_HOME/kaoken, else ~/.cache/kaoken; made with mode 0700.

    Libraries are code, so BuildError refuses a directory that another user owns or may write to, or may replace.
    """
    directory = _cache_path()
    try:
        for parent in reversed(directory.parents):  # with parents=True their modes would be left to the umask
            if not parent.exists():
                parent.mkdir(mode=0o700, exist_ok=True)
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.stat()
        above = {parent: parent.stat() for parent in (*directory.parents, *directory.resolve().parents)}
    except OSError as error:
        raise BuildError(
            f"the cache directory {directory} cannot be made ({error.strerror}): set KAOKEN_CACHE to "
            "another, or say which file to write (out)"
        ) from error
    _check_private(directory, status)
    for parent, parent_status in above.items():
        _check_not_replaceable(directory, parent, parent_status)
    return directory


def _cache_path() -> Path:
    configured = os.environ.get("KAOKEN_CACHE")
    if configured:
        return _expand_user(Path(configured)).absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore a relative path.
    return (Path(base) if os.path.isabs(base) else _expand_user(Path("~/.cache"))) / "kaoken"


def _expand_user(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise BuildError(
            f"the cache would be {path}, but there is no such home directory: set KAOKEN_CACHE to a directory"
        ) from None


def _check_private(directory: Path, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise BuildError(
            f"the cache directory {directory} belongs to the user id {status.st_uid}, not to you "
            f"({os.geteuid()}): set KAOKEN_CACHE to a directory of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BuildError(
            f"the cache directory {directory} may be written by other users "
            f"(mode {stat.S_IMODE(status.st_mode):04o}): `chmod 700 {directory}` "
            "if you trust what lies in it, else set KAOKEN_CACHE to another"
        )


def _check_not_replaceable(directory: Path, parent: Path, status: os.stat_result) -> None:
    """A directory's owner may rename what is in it, as may whoever may write to it unless it is sticky, as /tmp is."""
    # In a container without a mapping for root, what is root's belongs to a number such as 65534.
    if status.st_uid not in (0, os.geteuid(), os.stat("/").st_uid):
        raise BuildError(
            f"the cache directory {directory} lies in {parent}, which belongs to the user id {status.st_uid}, who "
            "could replace it: set KAOKEN_CACHE to a directory of your own"
        )
    # Where each user has a group of the same number, as most Linux systems set up, it has no other member.
    own_group = status.st_gid == os.getegid() == os.geteuid()
    others = stat.S_IWOTH if own_group else stat.S_IWGRP | stat.S_IWOTH
    if status.st_mode & others and not status.st_mode & stat.S_ISVTX:
        raise BuildError(
            f"the cache directory {directory} lies in {parent}, which may be written by other users "
            f"(mode {stat.S_IMODE(status.st_mode):04o}), who could replace it: `chmod go-w {parent}`, or set "
            "KAOKEN_CACHE to another"
        )


@contextmanager
def locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the file lock `path` between processes; `waiting` is called if another one holds it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def install(files: dict[Path, Path]) -> None:
    """Copies each source to its destination, which is seen old or new and never half-written.

    All are written and synced beside their destinations first, then renamed in order: name last the one whose
    presence means that all is there. Raises BuildError, e.g. for a full disk, with nothing left behind.
    """
    ready: dict[Path, Path] = {}
    try:
        for source, destination in files.items():
            temporary = _temporary(destination)
            ready[temporary] = destination
            _copy(source, temporary)
        for temporary, destination in ready.items():
            os.replace(temporary, destination)
            _sync_directory(destination.parent)
    except OSError as error:
        raise write_error(destination, error) from error
    finally:
        for temporary in ready:
            with suppress(FileNotFoundError):
                temporary.unlink()


def write_error(path: Path, error: OSError) -> BuildError:
    if error.errno in _DISK_FULL:
        return BuildError(f"the disk is full: {path} was not written; free some space there and try again")
    return BuildError(f"{path} cannot be written ({error.strerror or error}): check the directory and its permissions")


def _temporary(destination: Path) -> Path:
    return destination.with_name(f".kaoken-{secrets.token_hex(8)}.tmp")


def _copy(source: Path, target: Path) -> None:
    # Opened here, so that the user's umask decides who may read it; a library is executable by custom.
    mode = 0o666 | (source.stat().st_mode & 0o111)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with open(descriptor, "wb") as output, source.open("rb") as input_:
        shutil.copyfileobj(input_, output, 1 << 20)
        output.flush()
        os.fsync(output.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
