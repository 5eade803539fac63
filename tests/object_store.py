"""A real S3 server for tests: moto's, in a process of its own on loopback, which can be killed and
stopped.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test-user",
    "AWS_SECRET_ACCESS_KEY": "test-password",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}

SERVER = """
import os, sys, threading
from moto.server import main

threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()  # ends with the tests
main(sys.argv[1:])
"""


class ObjectStore:
    """The server keeps its objects in memory: after `kill` and `start` it is empty."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {**ENVIRONMENT, "S3_ENDPOINT_URL": self.url}
        self.process: subprocess.Popen | None = None
        self.bucket = "shards"

    def start(self) -> None:
        """Start the server if it does not run, and wait until it answers."""
        if self.process is not None and self.process.poll() is None:
            self.go_on()
            return
        command = [sys.executable, "-c", SERVER, "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        give_up_at = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                assert self.process.poll() is None, "the server ended"
                assert time.monotonic() < give_up_at, "the server does not start"
                time.sleep(0.05)

    def kill(self) -> None:
        """End it at once: connections are refused from now on."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def hang(self) -> None:
        """Let it accept connections (the system does) and answer nothing."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """End `hang`."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGCONT)

    def client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.url)

    def new_bucket(self, name: str) -> None:
        """Create an empty bucket, and take it for the paths of `folder`."""
        self.bucket = name
        self.client().create_bucket(Bucket=name)

    def address(self, name: str) -> str:
        return f"s3://{self.bucket}/{name}"

    def keys(self) -> list[str]:
        return sorted(
            found["Key"]
            for found in self.client().list_objects_v2(Bucket=self.bucket).get("Contents", [])
        )

    def read(self, key: str) -> bytes:
        return self.client().get_object(Bucket=self.bucket, Key=key)["Body"].read()

    def write(self, key: str, content: bytes) -> None:
        self.client().put_object(Bucket=self.bucket, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self.client().delete_object(Bucket=self.bucket, Key=key)

    def put_folder(self, folder: Path, name: str) -> str:
        """Upload a folder with plain boto3; returns its address."""
        for path in sorted(folder.iterdir()):
            self.write(f"{name}/{path.name}", path.read_bytes())
        return self.address(name)
