"""Build clients of object stores, with the usual credentials (environment, profile files, the machine's role).

Where there are none, access is anonymous. An S3-compatible server is named in the URI (see :mod:`wm.files.uris`) or by
``AWS_ENDPOINT_URL``. Not known here: what is read.
"""

import importlib.util
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from wm.files.uris import ObjectAddress

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

CONNECT_LIMIT_S = 10.0


class BotoClient(Protocol):
    """What is used of boto3's client."""

    def delete_object(self, *, Bucket: str, Key: str) -> object:
        """Remove an object; nothing if there is none.

        Args:
            Bucket: Its bucket.
            Key: Its key.
        """
        ...


def get_filesystem(address: ObjectAddress, stall_limit_s: float) -> "FileSystem":
    """Return the client for an address, one for each server, login, bucket and process (threads survive no fork).

    Args:
        address: The bucket, with its options.
        stall_limit_s: Max seconds without an answer to one request.

    Returns:
        The ``pyarrow.fs`` client.

    Raises:
        OSError: AWS was asked for the region of the bucket, and has no such bucket or did not answer.
    """
    options = dict(address.options)
    # The URI's own options come before the environment's.
    endpoint = options.get("endpoint_override") or (_s3_endpoint() if address.scheme == "s3" else "")
    endpoint_scheme, _, host = endpoint.rpartition("://")
    scheme = options.get("scheme") or endpoint_scheme or "https"
    # Without a login only public buckets can be read: requests are then not signed.
    anonymous = options.get("anonymous", "").lower() in ("true", "1") or not has_login(address.scheme)
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    login = (anonymous, os.environ.get("AWS_ACCESS_KEY_ID", ""))
    server = (host.rstrip("/"), scheme, region)
    return _open_filesystem(address.scheme, address.bucket, server, login, stall_limit_s, os.getpid())


@lru_cache(maxsize=64)
def _open_filesystem(
    kind: str, bucket: str, server: tuple[str, str, str], login: tuple[bool, str], stall_limit_s: float, _process: int
) -> "FileSystem":
    from datetime import timedelta

    from pyarrow import fs

    address, scheme, region = server
    settings = {"endpoint_override": address, "scheme": scheme} if address else {}
    if kind == "gs":
        limit = timedelta(seconds=max(1.0, stall_limit_s))
        return fs.GcsFileSystem(anonymous=login[0], retry_time_limit=limit, **settings)
    # The region of a bucket is asked of AWS once; other servers have none.
    if not region and not address:
        region = fs.resolve_s3_region(bucket)
    return fs.S3FileSystem(
        anonymous=login[0],
        region=region or "us-east-1",
        connect_timeout=min(stall_limit_s, CONNECT_LIMIT_S),
        request_timeout=stall_limit_s,
        allow_delayed_open=True,  # a small object is one request, not three
        **settings,
    )


def get_boto_client(address: ObjectAddress) -> "BotoClient | None":
    """Return boto3's client for an S3 address where boto3 is installed (the extra ``s3``), or None.

    Objects are removed by it: ``pyarrow.fs`` writes an empty object for the folder of each one that it removes, which
    costs a request, and which stores that keep objects as files (rclone) take for a file.

    Args:
        address: The bucket, with its options.
    """
    if importlib.util.find_spec("boto3") is None:
        return None
    endpoint, region, anonymous = _s3_settings(address)
    return _open_boto_client(endpoint, region, anonymous, os.environ.get("AWS_ACCESS_KEY_ID", ""), os.getpid())


@lru_cache(maxsize=64)
def _open_boto_client(endpoint: str, region: str, anonymous: bool, _login: str, _process: int) -> "BotoClient":
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    config = Config(
        connect_timeout=CONNECT_LIMIT_S,
        read_timeout=60,
        retries={"mode": "standard"},
        signature_version=UNSIGNED if anonymous else None,
    )
    # A session of its own: the default one is not safe between threads.
    client: BotoClient = boto3.session.Session().client(
        "s3", endpoint_url=endpoint or None, region_name=region or None, config=config
    )
    return client


def _s3_settings(address: ObjectAddress) -> tuple[str, str, bool]:
    """Return endpoint with scheme, region and whether access is anonymous; the URI's own options come first."""
    options = dict(address.options)
    endpoint = options.get("endpoint_override") or _s3_endpoint()
    if endpoint and "://" not in endpoint:
        endpoint = f"{options.get('scheme') or 'https'}://{endpoint}"
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    anonymous = options.get("anonymous", "").lower() in ("true", "1") or not has_login("s3")
    return endpoint, region or ("us-east-1" if endpoint else ""), anonymous


def has_login(scheme: str) -> bool:
    """Return whether this node has credentials for a kind of store, or somewhere to get them.

    Args:
        scheme: ``s3`` or ``gs``.
    """
    return _has_aws_login() if scheme == "s3" else _has_google_login()


def _s3_endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _has_aws_login() -> bool:
    """Return whether the SDK has somewhere to look: else it would wait for a metadata server that does not exist."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    files = (os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials", "~/.aws/config")
    return (
        any(os.environ.get(name) for name in (*names, "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"))
        or any(Path(file).expanduser().is_file() for file in files)
        or _read_hardware("sys_vendor").startswith("Amazon")
    )


def _has_google_login() -> bool:
    folder = Path(os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud").expanduser()
    return (
        bool(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"))
        or (folder / "application_default_credentials.json").is_file()
        or _read_hardware("product_name").startswith("Google")
    )


def _read_hardware(name: str) -> str:
    """Read what the machine says it is, by which the vendors' own libraries know that it has a metadata server."""
    try:
        return Path("/sys/class/dmi/id", name).read_text().strip()
    except OSError:
        return ""
