"""A local S3 server (moto) in the process of the tests, and buckets on it."""

import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow.fs as pafs
from moto.server import ThreadedMotoServer


@dataclass(frozen=True)
class Bucket:
    """An empty bucket."""

    name: str
    endpoint: str  # host:port

    @property
    def filesystem(self) -> pafs.S3FileSystem:
        """Of all buckets."""
        return pafs.S3FileSystem(
            access_key="test", secret_key="test", scheme="http", endpoint_override=self.endpoint
        )

    def uri(self, path: str) -> str:
        """As a user would name it."""
        return f"s3://test:test@{self.name}/{path}?scheme=http&endpoint_override={self.endpoint}"


@contextmanager
def s3_server() -> Iterator[str]:
    """Run a server; its host:port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it logs every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"{host}:{port}"
    finally:
        server.stop()


def new_bucket(endpoint: str) -> Bucket:
    """A bucket of its own for a test."""
    bucket = Bucket(f"b-{secrets.token_hex(4)}", endpoint)
    pafs.S3FileSystem(
        access_key="test",
        secret_key="test",
        scheme="http",
        endpoint_override=endpoint,
        allow_bucket_creation=True,
    ).create_dir(bucket.name)
    return bucket
