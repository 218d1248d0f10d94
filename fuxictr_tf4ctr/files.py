"""Files and folders that appear whole or not at all, locks, and disks that are full or read-only.

What is being written lies beside its target as ``.<name>.<host>-<process>-<number>.tmp``. What a
killed process left under such a name goes when its file is next written, or by :func:`sweep_up`.
"""

import errno
import glob
import io
import itertools
import os
import re
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fuxictr_tf4ctr.errors import DeviceError, MemoryShortage, StorageError, UserError

_HOST = f"{zlib.crc32(socket.gethostname().encode()):08x}"
_PARTIAL = re.compile(rf"\..+\.{_HOST}-(\d+)-\d+\.tmp")
_numbers = itertools.count()
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REASONS = {
    errno.EFBIG: "is larger than this process may write (see ulimit -f)",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "no permission; choose another folder, or have it given to you",
    errno.EPERM: "no permission; choose another folder, or have it given to you",
    errno.ENAMETOOLONG: "the name is too long for the file system",
}


class Output(io.FileIO):
    """A file being written, whose first error is kept until :meth:`check`.

    HDF5 and torch write from C++, where an error of one write is met again when the rest is let go,
    and ends the process. Here they never see one.

    Attributes:
        error: What went wrong first, if anything did; nothing is written after it.
        written: Bytes written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None
        self.written = 0

    def write(self, data: bytes) -> int:
        """Write all of ``data``, or keep the error; returns its length in bytes."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left and self.error is None:
                done = super().write(left)
                self.written, left = self.written + done, left[done:]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Change the file's size, or keep the error."""
        try:
            return super().truncate(size) if self.error is None else size
        except OSError as error:
            self.error = error
            return size

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self.error is not None:
            raise self.error


@contextmanager
def whole_file(path: str | os.PathLike[str], needs: int = 0) -> Iterator[Output]:
    """Lend a file to write that takes its place, on the disk, when all went well.

    Args:
        path: The file; one that is there is replaced. Its folder must exist.
        needs: About how many bytes it will have, if known.

    Raises:
        StorageError: The disk is too full for it, or it cannot be written there.
    """
    path, output = Path(path), None
    try:
        if path.exists() and not path.is_file():
            raise StorageError(f"{path}: is there, and is no file")
        need_space(path, needs)
        partial = _partial(path)
        try:
            with Output(partial) as output:
                yield output
                output.check()
                os.fsync(output.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except Exception as error:
        cause = output.error if output and output.error else error
        if not isinstance(cause, OSError):
            raise
        needs = max(needs, output.written if output else 0)
        raise storage_error(cause, path, needs) from error


def write_whole(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write a file, texts as UTF-8; a reader sees the old content or the new, never a part.

    Raises:
        StorageError: As for :func:`whole_file`.
    """
    data = content.encode() if isinstance(content, str) else content
    with whole_file(path, len(data)) as output:
        output.write(data)


@contextmanager
def whole_folder(path: str | os.PathLike[str], needs: int = 0) -> Iterator[Path]:
    """Lend a folder to fill that takes its place, on the disk, when all went well.

    Args:
        path: The folder; it must not be there, or be empty. The folder it lies in is made.
        needs: About how many bytes it will hold, if known.

    Raises:
        StorageError: The disk is too full for it, or it cannot be written there.
    """
    path = Path(path)
    need_space(path, needs)
    with storage_errors(path, needs):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(path) as partial:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    with file.open("rb") as written:
                        os.fsync(written.fileno())
            os.replace(partial, path)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Lend a new folder beside a path, on its file system, and remove it and its files after."""
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sweep_up(folder: Path, name: str = "*") -> None:
    """Remove what processes of this machine that are gone left of files being written.

    Args:
        folder: Where to look.
        name: The file that was being written, else any.
    """
    for left in folder.glob(f".{name}.{_HOST}-*.tmp"):
        found = _PARTIAL.fullmatch(left.name)
        if found and not _alive(int(found[1])):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    # Names have 255 bytes at most: one that fits must fit while it is written too.
    name = path.name.encode()[:200].decode(errors="ignore")
    sweep_up(path.parent, glob.escape(name))
    return path.with_name(f".{name}.{_HOST}-{os.getpid()}-{next(_numbers)}.tmp")


def _alive(process: int) -> bool:
    if os.name != "posix" or process == os.getpid():
        return True  # elsewhere signal 0 ends the process it asks about
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def need_space(path: str | os.PathLike[str], needs: int) -> None:
    """Raise unless the disk has room for so many bytes more.

    Raises:
        StorageError: It has not; the message says how much is needed and how much there is.
    """
    if needs and _free(Path(path)) < needs:
        raise storage_error(OSError(errno.ENOSPC, ""), path, needs)


def _free(path: Path) -> int:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextmanager
def storage_errors(path: str | os.PathLike[str], needs: int = 0) -> Iterator[None]:
    """Turn the system's errors into a :class:`StorageError` while in context.

    Args:
        path: What is being written or read; an error that names another file names that one.
        needs: About how many bytes are to be written, if known.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise storage_error(error, error.filename or path, needs) from error


def storage_error(
    error: OSError, path: str | os.PathLike[str] | None = None, needs: int = 0
) -> StorageError:
    """Say what a system error means: where, how much space it takes, what to do.

    Args:
        error: The error.
        path: What was being written or read; None takes the file the error names.
        needs: About how many bytes were to be written, if known.
    """
    path = path or error.filename
    where = f"{path}: " if path else ""
    if error.errno in _FULL:
        amount = f", needs about {_megabytes(needs)}" if needs else ""
        try:
            there = f", {_megabytes(_free(Path(path)))} are free" if path else ""
        except OSError:
            there = ""
        disk = Path(path).absolute().parent if path else "the disk"
        return StorageError(
            f"{where}no space left on {disk}{amount}{there}; make room, or choose another folder"
        )
    reason = _REASONS.get(error.errno) or error.strerror or str(error)
    return StorageError(f"{where}{reason}")


# Libraries in C++ and Rust hand the system's reason on in a text.
_NUMBER = re.compile(r"os error (\d+)|[Ee]rrno[ =]+(\d+)")
_TEXTS = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, *_REASONS)}
_NO_MEMORY = re.compile(
    "not enough memory|can't allocate memory|Unable to allocate|bad_alloc|out of memory", re.I
)


def system_error(error: BaseException | None) -> UserError | None:
    """Say in one message what the system refused, if an error or one of its causes tells so.

    Args:
        error: Whatever was raised, by Python or by a library.

    Returns:
        What to show in its place, None where the system is not to blame.
    """
    seen = []
    while error is not None and error not in seen:
        text = str(error).strip()
        if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
            return MemoryShortage(
                f"out of memory{': ' * bool(text)}{text[:200]}; make batch_size, embedding_dim or "
                "the data smaller, or use a machine with more memory"
            )
        if text.startswith("CUDA error:"):
            said = text.splitlines()[0]
            return DeviceError(f"the GPU failed: {said}; its memory is lost, look at nvidia-smi")
        number = error.errno if isinstance(error, OSError) else None
        if number is None and (found := _NUMBER.search(text)):
            number = int(found[1] or found[2])
        if number is None:
            number = next((each for said, each in _TEXTS.items() if said in text), None)
        if number is not None:
            name = getattr(error, "filename", None)
            return storage_error(OSError(number, os.strerror(number)), name)
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f} MB" if count >= 10**7 else f"{count / 1e6:.1f} MB"


@contextmanager
def held(path: str | os.PathLike[str], waiting: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold a lock file against other processes while in context.

    Args:
        path: The lock file; it stays. A process that was killed holds nothing.
        waiting: Called before waiting for another process; None does not wait.

    Yields:
        Whether it is ours; always where ``waiting`` is given.

    Raises:
        StorageError: It cannot be written there.
    """
    lock = FileLock(path)
    with storage_errors(path):
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting()
                lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()
