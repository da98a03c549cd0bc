"""Files that are whole or absent: atomic writes, hashes and locks between processes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from t2cli.errors import T2Error


def disk_error(path: Path, error: OSError) -> T2Error:
    """Return the T2Error for an OSError met while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return T2Error(
            f"the disk is full: {path} could not be written and was left as it was",
            hint="free some space (everything under the cache folder of T2_HOME may be deleted) and try again",
        )
    return T2Error(
        f"{path} could not be written: {error.strerror or error}",
        hint="check the folder's permissions, or name one you can write to (T2_HOME, --registry or the file's option)",
    )


def check_writable(path: Path) -> None:
    """Raise T2Error if `path` could not be written: the folder that is there of those it lies in takes no file."""
    folder = next(parent for parent in (*path.absolute().parents, Path()) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise disk_error(path, error) from error


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block succeeds it is synced and becomes `path`.

    Readers see the old file or the whole new one, never a part. An OSError becomes a T2Error.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
    except OSError as error:
        raise disk_error(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that the file is the old or the new one, never a part."""
    with writing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def folder_being_made(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block succeeds it is renamed to `path`.

    `path` must not exist at that moment, else FileExistsError: the caller decides what that means.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        yield temporary
        sync_files(temporary)
        temporary.chmod(0o755)
        if path.exists():
            raise FileExistsError(errno.EEXIST, "already there", str(path))
        temporary.rename(path)
        sync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, "already there", str(path)) from error
        raise disk_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_whole(path: Path) -> None:
    """Delete a folder with all it holds, or a file or link; what a link points to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def clear_temporaries(folder: Path) -> None:
    """Delete what killed processes were writing or deleting in `folder`; nobody may be writing there now."""
    for leftover in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            remove_whole(leftover)


def sync_files(folder: Path) -> None:
    """Make what the files in `folder` hold survive a power cut."""
    for file in folder.iterdir():
        if file.is_file():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the platform can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, waiting: str = "") -> Iterator[None]:
    """Hold the lock file `path` against other processes; `waiting` is said on stderr if that takes time."""
    import sys

    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0.2)
        except Timeout:
            if waiting:
                print(waiting, file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` if nobody else does, and remove it afterwards; yields whether it is held.

    The kernel takes the lock from a process that dies. Somebody who opened the file just before it was removed may
    hold a lock that nobody sees: look again, once held, whether the work is still to be done; twice must be harmless.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise disk_error(path, error) from error
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):  # where an open file cannot be removed it stays; it is empty
            path.unlink(missing_ok=True)
        lock.release()
