"""Read and write objects at s3://bucket/key, on AWS or any other S3 endpoint. Errors say what
failed and at which endpoint.

The endpoint is taken from S3_ENDPOINT_URL or AWS_ENDPOINT_URL (default: AWS). boto3 finds the
credentials; if there are none, requests are not signed, which works for public buckets. A store
that is down or does not answer is an error after about PATIENCE_S. boto3 is imported inside the
functions, because its import takes a while.
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

from pargo_ds.errors import StoreError, StoreUnreachableError

T = TypeVar("T")
CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 5, 8
"""Longest wait in seconds for a connection, and for the next bytes."""
PATIENCE_S = 16
"""Requests that fail for a temporary reason are repeated for this number of seconds after the first
failure.
"""
DOWNLOAD_LIMIT_S = 600
"""Longest time in seconds for one object, for stores that answer but are very slow."""
CONNECTIONS = 8
"""Upper bound of the simultaneous requests of one process."""
PART_BYTES = 1 << 26
"""Larger files are uploaded in parts of this number of bytes."""
PASSING_CODES = {
    "SlowDown",
    "RequestTimeout",
    "RequestTimeoutException",
    "Throttling",
    "ThrottlingException",
}


def never() -> bool:
    """Return False: a `stop` function for transfers that are never given up."""
    return False


def bucket_and_key(address: str) -> tuple[str, str]:
    """Return the bucket and the key of s3://bucket/key. Raises StoreError for any other address."""
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
    """Write an object to a file. Return False if there is no such object.

    The transfer is given up when `stop` returns True; it is called from time to time.

    Raises StoreError when the store fails, refuses, is too slow or has no such bucket, and OSError
    when the file cannot be written.
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
                raise StoreUnreachableError(
                    f"reading {address} at {endpoint()} was given up after {file.tell()} of "
                    f"{answer['ContentLength']} bytes and {time.monotonic() - started:.0f} s"
                )
    return True


def put(address: str, path: Path) -> int:
    """Upload a file and return its size.

    Raises StoreError when the store fails or the object does not have the size of the file.
    """
    from boto3.s3.transfer import TransferConfig

    bucket, key = bucket_and_key(address)
    parts = TransferConfig(
        use_threads=False, multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES
    )
    _patiently(
        lambda: _client().upload_file(str(path), bucket, key, Config=parts), f"writing {address}"
    )
    size, stored = path.stat().st_size, object_size(address)
    if stored != size:
        raise StoreError(
            f"{address} at {endpoint()} has {stored} bytes after the upload of {path}, which has {size}"
        )
    return size


def object_size(address: str) -> int | None:
    """Return the size of an object in bytes, or None if there is no such object or bucket.

    Raises StoreError when the store fails.
    """
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
    """Delete an object if it exists. Raises StoreError when the store fails."""
    bucket, key = bucket_and_key(address)
    _patiently(lambda: _client().delete_object(Bucket=bucket, Key=key), f"deleting {address}")


def endpoint() -> str:
    """Return the endpoint for messages, without user names, passwords and queries."""
    url = urlsplit(str(_client().meta.endpoint_url))
    address = f"{url.scheme}://{url.hostname}"
    if url.port:
        address += f":{url.port}"
    return address


def _client() -> Any:
    """boto3's client of this process; its threads share it."""
    names = ("S3_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    given = [os.environ[name] for name in names if os.environ.get(name)]
    return _make_client(os.getpid(), next(iter(given), None))


@functools.lru_cache(maxsize=2)
def _make_client(process: int, endpoint_url: str | None) -> Any:
    """Make the client of a process; a forked process cannot use the connections of its parent."""
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    session = boto3.session.Session()
    settings: dict[str, Any] = {}
    if not session.get_credentials():
        settings["signature_version"] = UNSIGNED
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries={"total_max_attempts": 1},  # `_patiently` repeats, see there
        max_pool_connections=CONNECTIONS,
        request_checksum_calculation="when_required",  # many stores support nothing else
        response_checksum_validation="when_required",
        **settings,
    )
    try:
        return session.client("s3", endpoint_url=endpoint_url, config=config)
    except ValueError:  # its message shows the whole address
        raise StoreError(
            "S3_ENDPOINT_URL or AWS_ENDPOINT_URL is not an address such as https://host:port"
        ) from None


def _patiently(action: Callable[[], T], doing: str, stop: Callable[[], bool] = never) -> T:
    """Return the result of `action`, which is repeated for PATIENCE_S while it fails for a
    temporary reason.

    botocore's own retries count attempts, not seconds. Measured with botocore 1.44 and a store that
    is down: five attempts end after 2 s, ten attempts after 10 to 18 s (by chance), and ten
    attempts of each of eight threads after 1 to 2 s, because the threads share a quota. botocore
    also does not repeat a transfer that breaks off in the middle of an object. A job survives an
    outage only if all of its processes do, so each process must be patient for the same time.

    Raises StoreUnreachableError when the time is over, StoreError when the reason is not temporary.
    """
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import BotoCoreError, ClientError

    give_up_at, pause = None, 0.25
    while True:
        try:
            return action()
        except (BotoCoreError, ClientError, S3UploadFailedError) as caught:
            error: BaseException | None = caught
            if isinstance(caught, S3UploadFailedError):
                error = caught.__context__
            give_up_at = give_up_at or time.monotonic() + PATIENCE_S
            said = f"{doing} failed at {endpoint()}: {_reason(error)}"
            if not _is_passing(error):
                raise StoreError(said) from None
            if time.monotonic() + pause > give_up_at or stop():
                raise StoreUnreachableError(said) from None
        time.sleep(pause)
        pause = min(2 * pause, 4)


def _is_passing(error: BaseException | None) -> bool:
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return (
            status >= 500 or status == 429 or error.response["Error"].get("Code") in PASSING_CODES
        )
    return isinstance(
        error,
        (exceptions.HTTPClientError, exceptions.ConnectionError, exceptions.IncompleteReadError),
    )


def _reason(error: BaseException | None) -> str:
    """The reason of a failure in our own words, because botocore's messages about connections show
    the address with a password that it may contain.
    """
    from botocore import exceptions

    if isinstance(error, exceptions.ClientError):
        details = error.response["Error"]
        reason = f"{details.get('Code', '?')} {details.get('Message', '')}"
        if details.get("Code") in ("403", "AccessDenied"):
            reason += "; look at the credentials and the bucket's policy"
        return reason.strip()
    if isinstance(error, exceptions.ReadTimeoutError):
        return f"it does not answer (nothing came for {READ_TIMEOUT_S} s, tried again for {PATIENCE_S} s)"
    if _is_passing(error):
        return f"it cannot be reached or broke off ({type(error).__name__}, tried again for {PATIENCE_S} s)"
    return f"{type(error).__name__}: {error}"
