"""Objects at s3://bucket/key, on AWS or any other S3 endpoint, with errors that say what failed where.

The endpoint is S3_ENDPOINT_URL or AWS_ENDPOINT_URL, else AWS; credentials come from boto3's usual places, and without
any the requests are unsigned (public buckets). A store that is down or does not answer is an error after about
PATIENCE_S, never a wait without end. boto3 is imported inside the functions, because its import takes a while.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

T = TypeVar("T")
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 8
"""Longest wait for a connection, and for the next bytes."""
PATIENCE_S = 16
"""Requests that fail for a passing reason are repeated until so long after the first failure."""
DOWNLOAD_LIMIT_S = 600
"""Longest time for one object, for stores that answer but crawl."""
CONNECTIONS = 8
"""Requests at once of one process."""
PART_BYTES = 1 << 26
"""Larger files are uploaded in parts of this size."""
PASSING_CODES = {"SlowDown", "RequestTimeout", "RequestTimeoutException", "Throttling", "ThrottlingException"}


class StoreError(ValueError):
    """An object store or an address in it that cannot be used; the message names the address and the endpoint."""


def never() -> bool:
    return False


def bucket_and_key(address: str) -> tuple[str, str]:
    """The bucket and the key of s3://bucket/key; StoreError for anything else."""
    scheme, _, rest = address.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3":
        raise StoreError(
            f"{scheme}:// addresses cannot be read or written: expected s3://bucket/folder (any S3 endpoint: set "
            "S3_ENDPOINT_URL) or a local folder"
        )
    if not bucket or "@" in bucket:
        raise StoreError("expected s3://bucket/folder, without credentials in the address")
    return bucket, key.strip("/")


def get(address: str, path: Path, stop: Callable[[], bool] = never) -> bool:
    """Write an object to a file; false when there is none. `stop` is asked now and then whether to give up.

    Raises StoreError when the store fails, refuses, crawls or has no such bucket, and OSError for the file.
    """
    return _patiently(lambda: _get_once(address, path, stop), f"reading {address}", stop)


def _get_once(address: str, path: Path, stop: Callable[[], bool]) -> bool:
    from botocore.exceptions import ClientError

    bucket, key = bucket_and_key(address)
    try:
        answer = _client().get_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if error.response["Error"].get("Code") == "NoSuchKey":
            return False
        raise
    started = time.monotonic()
    with closing(answer["Body"]) as body, open(path, "wb") as file:
        for piece in body.iter_chunks(1 << 20):
            file.write(piece)
            if stop() or time.monotonic() - started > DOWNLOAD_LIMIT_S:
                raise StoreError(
                    f"reading {address} at {endpoint()} was given up after {file.tell()} of "
                    f"{answer['ContentLength']} bytes and {time.monotonic() - started:.0f} s"
                )
    return True


def put(address: str, path: Path) -> int:
    """Upload a file; returns its size. Raises StoreError when the store fails or the object's size is another."""
    from boto3.s3.transfer import TransferConfig

    bucket, key = bucket_and_key(address)
    parts = TransferConfig(use_threads=False, multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES)
    _patiently(lambda: _client().upload_file(str(path), bucket, key, Config=parts), f"writing {address}")
    size, stored = path.stat().st_size, object_size(address)
    if stored != size:
        raise StoreError(f"{address} at {endpoint()} has {stored} bytes after the upload of {path}, which has {size}")
    return size


def object_size(address: str) -> int | None:
    """Bytes of an object; None when there is no such object or bucket. Raises StoreError when the store fails."""
    from botocore.exceptions import ClientError

    bucket, key = bucket_and_key(address)

    def ask() -> int | None:
        try:
            return _client().head_object(Bucket=bucket, Key=key)["ContentLength"]
        except ClientError as error:
            if error.response["Error"].get("Code") in ("404", "NoSuchKey"):
                return None
            raise

    return _patiently(ask, f"asking for {address}")


def delete(address: str) -> None:
    """Delete an object, if there is one; raises StoreError when the store fails."""
    bucket, key = bucket_and_key(address)
    _patiently(lambda: _client().delete_object(Bucket=bucket, Key=key), f"deleting {address}")


def endpoint() -> str:
    """The endpoint for messages: without user names, passwords and queries."""
    url = urlsplit(str(_client().meta.endpoint_url))
    return f"{url.scheme}://{url.hostname}{f':{url.port}' if url.port else ''}"


def _client() -> Any:
    """boto3's client of this process; threads share it."""
    names = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return _make_client(os.getpid(), next((os.environ[name] for name in names if os.environ.get(name)), None))


@functools.lru_cache(maxsize=2)
def _make_client(process: int, endpoint_url: str | None) -> Any:
    """One for each process: connections are of no use in a forked one."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.session.Session()
    settings: dict[str, Any] = {} if session.get_credentials() else {"signature_version": UNSIGNED}
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 1},  # `_patiently` repeats
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation="when_required",  # many stores know no other way
        response_checksum_validation="when_required",
        **settings,
    )
    try:
        return session.client("s3", endpoint_url=endpoint_url, config=config)
    except ValueError:  # its message shows the whole address
        raise StoreError("S3_ENDPOINT_URL or AWS_ENDPOINT_URL is not an address such as https://host:port") from None


def _patiently(action: Callable[[], T], doing: str, stop: Callable[[], bool] = never) -> T:
    """The result of `action`, repeated for PATIENCE_S while it fails for a passing reason; else StoreError."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    give_up_at, pause = None, 0.25
    while True:
        try:
            return action()
        except (BotoCoreError, ClientError, S3UploadFailedError) as caught:
            error = caught.__context__ if isinstance(caught, S3UploadFailedError) else caught
            give_up_at = give_up_at or time.monotonic() + PATIENCE_S
            if not _is_passing(error) or time.monotonic() + pause > give_up_at or stop():
                raise StoreError(f"{doing} failed at {endpoint()}: {_reason(error)}") from None
        time.sleep(pause)
        pause = min(2 * pause, 4)


def _is_passing(error: BaseException | None) -> bool:
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return status >= 500 or status == 429 or error.response["Error"].get("Code") in PASSING_CODES
    return isinstance(error, (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError))


def _reason(error: BaseException | None) -> str:
    """Why, in words of ours: botocore's messages about connections show the address with any password in it."""
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        code, said = error.response["Error"].get("Code", "?"), error.response["Error"].get("Message", "")
        denied = "; look at the credentials and the bucket's policy" if code in ("403", "AccessDenied") else ""
        return f"{code} {said}{denied}".strip()
    if isinstance(error, exceptions.ReadTimeoutError):
        return f"it does not answer (nothing came for {READ_TIMEOUT_S} s, tried again for {PATIENCE_S} s)"
    if _is_passing(error):
        return f"it cannot be reached or broke off ({type(error).__name__}, tried again for {PATIENCE_S} s)"
    return f"{type(error).__name__}: {error}"
