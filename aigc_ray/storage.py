"""Bytes, wherever they live: the same functions for a local folder and for s3://bucket/prefix.

The endpoint and keys of S3 come from the AWS environment variables (`AWS_ENDPOINT_URL` for any
S3-compatible store). Names that start with a dot are ours (locks, temporary files): they are not
listed, sized, uploaded or downloaded. Faults of the outside become a `UserError` of one sentence.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import uuid4

from aigc_ray.errors import UserError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from pyarrow.fs import FileSystem

# With these an endpoint that takes no connection is given up after about 20 s, one that takes it
# and says nothing after about a minute.
CONNECT_SECONDS, READ_SECONDS = 4, 15
ATTEMPTS = 4  # the waits between them are random, up to 1, 2 and 4 s


class Missing(UserError):  # noqa: N818
    """There is nothing at this address."""


class Exists(UserError):  # noqa: N818
    """Something is already at this address."""


class Changed(UserError):  # noqa: N818
    """Another writer was here since the tag was read."""


def home() -> str:
    """Where runs, models and data live: AIGC_HOME, or ./aigc-home; an absolute path or s3://…"""
    uri = os.environ.get("AIGC_HOME") or "aigc-home"
    path = local(uri)
    if path is None:
        return uri.rstrip("/")
    # Ray sets this variable in the driver of a submitted job only.
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and uri[0] not in "/~" and "://" not in uri:
        raise UserError(
            f"AIGC_HOME is {uri!r}, a relative path, which would vanish with the folder of this "
            "job: set it to an absolute path or s3://bucket/prefix"
        )
    return str(path)


def cache() -> Path:
    """The local folder for copies of what lives elsewhere; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aigc_ray"


def join(uri: str, *parts: str) -> str:
    return "/".join([uri.rstrip("/"), *(part.strip("/") for part in parts)])


def name(uri: str) -> str:
    """The last part of an address."""
    return uri.rstrip("/").rsplit("/", 1)[-1]


def local(uri: str) -> Path | None:
    """The absolute path of a local address, None for one in S3."""
    place = _place(uri)
    return place.path if isinstance(place, _Folder) else None


def filesystem(uri: str) -> tuple[FileSystem, str]:
    """For Ray Data and Parquet. Its pickle holds no keys: workers read their own environment."""
    place = _place(uri)
    if isinstance(place, _Folder):
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), str(place.path)
    return place.filesystem(), f"{place.bucket}/{place.key}".rstrip("/")


def exists(uri: str) -> bool:
    """Whether a file, or a folder that is not empty, is there (locally also an empty folder)."""
    with _at(uri) as place:
        return place.exists()


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """A whole file; one of more than `limit` bytes is refused before it is read."""
    with _at(uri) as place:
        if limit is not None and (found := place.size()) > limit:
            raise UserError(f"{uri} has {found} bytes, more than the {limit} allowed")
        return place.read()[0]


def write_bytes(uri: str, data: bytes) -> None:
    """All or nothing: a reader sees the old file or the new one, also after a crash."""
    with _at(uri) as place:
        place.put(BytesIO(data))


def read_json(uri: str) -> Any:
    try:
        return json.loads(read_bytes(uri))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{uri} is not JSON: {error}") from error


def write_json(uri: str, data: Any) -> None:
    """Strict JSON: a NaN is refused here, since browsers cannot read it."""
    write_bytes(uri, (json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def children(uri: str) -> list[str]:
    """The sorted names of the files and folders right below; none where nothing is."""
    with _at(uri) as place:
        return sorted(child for child in place.children() if not child.startswith("."))


def files(uri: str) -> dict[str, int]:
    """The bytes of every file below, at any depth, by its sorted relative name."""
    with _at(uri) as place:
        found = sorted(place.files().items())
    return {key: length for key, length in found if "/." not in f"/{key}"}


def size(uri: str) -> int:
    """Bytes of a file, or of all files below a folder."""
    below = files(uri)
    with _at(uri) as place:
        return sum(below.values()) if below else place.size()


def delete(uri: str) -> None:
    """Delete a file or a folder with all that is below; nothing there is no error."""
    with _at(uri) as place:
        place.delete()


def upload(folder: Path, uri: str, last: str = "MANIFEST.json") -> None:
    """Copy all files of a folder; `last` is written last, so it marks a complete copy."""
    names = files(str(folder))
    if not names:
        raise UserError(f"{folder} holds no files to upload")
    for relative in sorted(names, key=lambda relative: (relative == last, relative)):
        with _at(join(uri, relative)) as place, (folder / relative).open("rb") as source:
            place.put(source)


def download(uri: str, folder: Path) -> None:
    """Copy all files below an address into a local folder."""
    names = files(uri)
    if not names:
        raise Missing(f"{uri} holds no files")
    for relative in names:
        target = folder / relative
        if not target.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{join(uri, relative)} would be written outside {folder}")
        copy(join(uri, relative), target)


def copy(uri: str, target: Path) -> None:
    """Copy one file to a local path, which appears only when it is complete."""
    with _at(uri) as place, _at(str(target)), _atomic(target) as file:
        place.get(file)


def create(uri: str, data: bytes) -> None:
    """Write a file that must not be there yet: of many writers one succeeds, others get Exists."""
    with _at(uri) as place:
        place.swap(data, None)


def read_tagged(uri: str) -> tuple[bytes, str]:
    """A file and the tag that `replace` wants to see."""
    with _at(uri) as place:
        return place.read()


def replace(uri: str, data: bytes, tag: str) -> None:
    """Write a file only if it is still the one whose tag was read, else Changed."""
    with _at(uri) as place:
        place.swap(data, tag)


def _place(uri: str) -> _Folder | _Bucket:
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme == "file":
        return _Folder(rest if separator else uri)
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise UserError(f"{uri!r} is no address: write a local path or s3://bucket/prefix")
    return _Bucket(bucket, key)


@contextmanager
def _at(uri: str) -> Iterator[_Folder | _Bucket]:
    """The place of an address, its faults told in one sentence."""
    place = _place(uri)
    with place.faults():
        yield place


@contextmanager
def _atomic(path: Path) -> Iterator[BinaryIO]:
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


def _conflict(uri: str, tag: str | None) -> UserError:
    if tag is None:
        return Exists(f"{uri} already exists")
    return Changed(f"{uri} was changed by another writer: read it again")


class _Folder:
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
        with _atomic(self.path) as file:
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
                raise _conflict(str(self.path), tag)
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


class _Bucket:
    """A key, or a prefix of keys, in a bucket of an S3-compatible store."""

    def __init__(self, bucket: str, key: str) -> None:
        self.bucket, self.key = bucket, key.strip("/")
        self.uri = f"s3://{bucket}/{self.key}".rstrip("/")
        self.below = f"{self.key}/".lstrip("/")

    @property
    def client(self) -> S3Client:
        return _client(tuple(sorted(item for item in os.environ.items() if item[0][:4] == "AWS_")))

    @contextmanager
    def faults(self) -> Iterator[None]:
        from botocore import exceptions as boto
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except boto.ClientError as error:
            raise self._refused(error.response, self.client.meta.endpoint_url) from error
        except (boto.NoCredentialsError, boto.PartialCredentialsError) as error:
            raise UserError(
                f"{self.uri} needs keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except (boto.ConnectionError, boto.HTTPClientError, RetriesExceededError) as error:
            raise UserError(
                f"{self.client.meta.endpoint_url} does not answer, so {self.uri} cannot be "
                "reached: check AWS_ENDPOINT_URL and the network"
            ) from error
        except boto.BotoCoreError as error:
            raise UserError(f"{self.uri}: {' '.join(str(error).split())}") from error

    def _refused(self, response: Any, endpoint: str) -> Exception:
        """What the store's refusal means for the user."""
        code, status = response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]
        if code == "NoSuchBucket":
            return UserError(
                f"the bucket {self.bucket} does not exist at {endpoint}: create it, or name another"
            )
        if status == 404:  # after HEAD there is no code that would say which
            bucket = "" if code == "NoSuchKey" else ", or its bucket does not"
            return Missing(f"{self.uri} does not exist{bucket}")
        if status in (401, 403) or code in ("ExpiredToken", "InvalidToken"):
            return UserError(
                f"{endpoint} refuses the keys for {self.uri} ({code}): check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and what they may do"
            )
        message = " ".join(response["Error"].get("Message", "").split())
        said = f"{self.uri}: {endpoint} answered {status} {code} {message}".rstrip()
        return UserError(said) if status < 500 else OSError(said)

    def filesystem(self) -> FileSystem:
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        endpoint = self.client.meta.endpoint_url
        return S3FileSystem(
            region=self.client.meta.region_name,
            endpoint_override=None if endpoint.endswith("amazonaws.com") else endpoint,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=READ_SECONDS,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        )

    def _head(self) -> int | None:
        """The object's bytes, None where there is none."""
        from botocore.exceptions import ClientError

        try:
            return self.client.head_object(Bucket=self.bucket, Key=self.key)["ContentLength"]
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise

    def exists(self) -> bool:
        listing = self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.below, MaxKeys=1)
        return listing["KeyCount"] > 0 or (bool(self.key) and self._head() is not None)

    def size(self) -> int:
        found = self._head()
        if found is None:
            raise Missing(f"{self.uri} does not exist")
        return found

    def read(self) -> tuple[bytes, str]:
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        for attempt in range(1, ATTEMPTS + 1):
            answer = self.client.get_object(Bucket=self.bucket, Key=self.key)
            try:
                with closing(answer["Body"]) as body:  # its own `with` would give the raw stream
                    return body.read(), answer["ETag"]
            except (HTTPClientError, IncompleteReadError):
                if attempt == ATTEMPTS:  # botocore's own retries end where the body begins
                    raise
        raise AssertionError("unreachable")

    def put(self, source: BinaryIO) -> None:
        self.client.upload_fileobj(source, self.bucket, self.key)

    def get(self, target: BinaryIO) -> None:
        self.client.download_fileobj(self.bucket, self.key, target)

    def swap(self, data: bytes, tag: str | None) -> None:
        from botocore.exceptions import ClientError

        condition: Any = {"IfNoneMatch": "*"} if tag is None else {"IfMatch": tag}
        try:
            self.client.put_object(Bucket=self.bucket, Key=self.key, Body=data, **condition)
        except ClientError as error:
            answer = error.response["ResponseMetadata"]
            gone = error.response["Error"]["Code"] == "NoSuchKey"
            if answer["HTTPStatusCode"] not in (409, 412) and not gone:
                raise
            # After a lost answer the retry meets our own write: that is success.
            if answer.get("RetryAttempts") and not gone and self.read()[0] == data:
                return
            raise _conflict(self.uri, tag) from error

    def _list(self, delimiter: str = "") -> Iterator[tuple[str, int]]:
        """Keys and their bytes; with a delimiter only those right below, folders end with it."""
        pages = self.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=self.below, Delimiter=delimiter):
            yield from ((item["Key"], item["Size"]) for item in page.get("Contents", []))
            yield from ((item["Prefix"], 0) for item in page.get("CommonPrefixes", []))

    def children(self) -> list[str]:
        return [name(key) for key, _ in self._list("/") if key != self.below]

    def files(self) -> dict[str, int]:
        # Some tools store an empty object called "folder/" for every folder.
        return {key[len(self.below) :]: size for key, size in self._list() if key[-1] != "/"}

    def delete(self) -> None:
        if not self.key:
            raise UserError(f"{self.uri} is a whole bucket and is not deleted: name a prefix")
        keys = [self.key, *(key for key, _ in self._list())]
        for start in range(0, len(keys), 1000):  # the most that one request may name
            part: Any = {"Objects": [{"Key": key} for key in keys[start : start + 1000]]}
            answer = self.client.delete_objects(Bucket=self.bucket, Delete=part)
            for kept in answer.get("Errors", []):
                raise UserError(f"s3://{self.bucket}/{kept['Key']} is not deleted: {kept['Code']}")


@lru_cache(maxsize=8)
def _client(environment: tuple[tuple[str, str], ...]) -> S3Client:
    """One client for each state of the AWS variables: making one takes a tenth of a second."""
    import boto3
    from botocore.config import Config

    variables = dict(environment)
    region = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION")
    config = Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        # Throttling, 5xx and lost connections are tried again, with growing random waits.
        retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
        # Newer checksums are unknown to some S3-compatible stores; our manifests hold SHA-256.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        # A session of our own: the default one is not made for threads.
        return boto3.session.Session().client("s3", region_name=region, config=config)
    except ValueError as error:
        endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL")
        raise UserError(f"AWS_ENDPOINT_URL is not an http(s) address: {endpoint!r}") from error
