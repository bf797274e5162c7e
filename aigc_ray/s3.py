"""Keys in the buckets of an S3-compatible store, as `storage` sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

from aigc_ray.errors import Missing, UserError, conflict

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
    from pyarrow.fs import FileSystem

# With these an endpoint that takes no connection is given up after about 20 s, one that takes it
# and says nothing after about a minute.
CONNECT_SECONDS, READ_SECONDS = 4, 15
ATTEMPTS = 4  # the waits between them are random, up to 1, 2 and 4 s


class Bucket:
    """A key, or a prefix of keys, in a bucket of an S3-compatible store."""

    def __init__(self, bucket: str, key: str) -> None:
        self.bucket, self.key = bucket, key.strip("/")
        self.uri = f"s3://{bucket}/{self.key}".rstrip("/")
        self.below = f"{self.key}/".lstrip("/")

    @property
    def client(self) -> S3Client:
        return client(tuple(sorted(item for item in os.environ.items() if item[0][:4] == "AWS_")))

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
            raise conflict(self.uri, tag) from error

    def _list(self, delimiter: str = "") -> Iterator[tuple[str, int]]:
        """Keys and their bytes; with a delimiter only those right below, folders end with it."""
        pages = self.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.bucket, Prefix=self.below, Delimiter=delimiter):
            yield from ((item["Key"], item["Size"]) for item in page.get("Contents", []))
            yield from ((item["Prefix"], 0) for item in page.get("CommonPrefixes", []))

    def children(self) -> list[str]:
        return [
            key.rstrip("/").rpartition("/")[2] for key, _ in self._list("/") if key != self.below
        ]

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
def client(environment: tuple[tuple[str, str], ...]) -> S3Client:
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
