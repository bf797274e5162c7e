"""Files on this machine, as `storage` sees them."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from aigc_ray.errors import Missing, UserError, conflict


class Folder:
    """A path on this machine."""

    def __init__(self, path: str) -> None:
        # Not resolve(), which would follow links: deleting a link must not delete its target.
        self.path = Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100

    @contextmanager
    def faults(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise Missing(f"{error.filename or self.path} does not exist") from error
        except (PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
            raise UserError(f"{error.filename or self.path}: {error.strerror}") from error
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise OSError(
                f"no space is left for {self.path}; what was there before is unchanged"
            ) from error

    def exists(self) -> bool:
        return self.path.exists()

    def size(self) -> int:
        return 0 if self.path.is_dir() else self.path.stat().st_size

    def read(self) -> tuple[bytes, str]:
        data = self.path.read_bytes()
        return data, hashlib.sha256(data).hexdigest()

    def put(self, source: BinaryIO) -> None:
        with atomic(self.path) as file:
            shutil.copyfileobj(source, file, 1 << 20)

    def get(self, target: BinaryIO) -> None:
        with self.path.open("rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)

    def swap(self, data: bytes, tag: str | None) -> None:
        import fcntl  # not on Windows, where all else works

        self.path.parent.mkdir(parents=True, exist_ok=True)
        with (self.path.parent / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if tag != (self.read()[1] if self.path.exists() else None):
                raise conflict(str(self.path), tag)
            self.put(BytesIO(data))

    def children(self) -> list[str]:
        return [path.name for path in self.path.iterdir()] if self.path.is_dir() else []

    def files(self) -> dict[str, int]:
        # Without temporary files: another writer's may be gone before its size is asked.
        below = (path for path in self.path.rglob("[!.]*") if path.is_file())
        return {path.relative_to(self.path).as_posix(): path.stat().st_size for path in below}

    def delete(self) -> None:
        if self.path in (Path(self.path.root), Path.home()):
            raise UserError(f"{self.path} is not deleted: name a folder below it")
        if self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


@contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` once it is complete and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
