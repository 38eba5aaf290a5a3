"""Models in a bucket of moto, and nodes that share nothing: each has a folder of its own for copies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.storage_servers import s3_server


@contextmanager
def bucket(*names: str) -> Iterator[Any]:
    """Run an S3 server with these buckets; yields its boto3 client."""
    with pytest.MonkeyPatch.context() as patch, s3_server(patch) as client:
        for name in names:
            client.create_bucket(Bucket=name)
        yield client


def empty(client: Any, name: str) -> None:
    """Remove every object of a bucket."""
    for key in keys(client, name):
        client.delete_object(Bucket=name, Key=key)


def upload(client: Any, folder: Path, name: str, prefix: str) -> str:
    """Upload a folder; returns its URI."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            key = f"{prefix}/{file.relative_to(folder)}".removeprefix("/")
            client.put_object(Bucket=name, Key=key, Body=file.read_bytes())
    return f"s3://{name}/{prefix}"


def keys(client: Any, name: str, prefix: str = "") -> list[str]:
    """Keys of a bucket below a prefix."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=name, Prefix=prefix)
    return sorted(item["Key"] for page in pages for item in page.get("Contents", []))


def files_below(folder: Path) -> list[str]:
    """Names of the files that a node has."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
