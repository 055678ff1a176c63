"""A real S3 endpoint on loopback for tests, and bare objects in it."""

import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import obstore
from obstore.store import S3Store

SECRET = "wJalrXUtnFEMI-secret-of-the-tests"


@dataclass(frozen=True)
class BucketServer:
    """A running server, with one bucket."""

    port: int

    def environment(self, port=None):
        """What a user exports; `port` for a proxy before the server."""
        return {
            "AWS_ACCESS_KEY_ID": "AKIA-of-the-tests",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port or self.port}",
            "RETORT_STORE_PATIENCE_S": "20",
            "RETORT_STORE_TIMEOUT_S": "5",
        }

    def folder(self, prefix):
        """The objects below a prefix, without Retort."""
        return ObjectFolder(
            f"s3://caches/{prefix}",
            S3Store(
                "caches",
                prefix=prefix,
                endpoint=f"http://127.0.0.1:{self.port}",
                access_key_id="x",
                secret_access_key="x",
                region="us-east-1",
                client_options={"allow_http": True},
            ),
        )


@dataclass(frozen=True)
class ObjectFolder:
    """Bare objects below a URL."""

    url: str
    client: S3Store

    def keys(self, below=""):
        return sorted(m["path"] for m in obstore.list(self.client, below or None).collect())

    def read(self, key):
        return bytes(obstore.get(self.client, key).bytes())

    def write(self, key, data):
        obstore.put(self.client, key, data)

    def remove(self, key):
        obstore.delete(self.client, key)

    def contents(self, below=""):
        return {key: self.read(key) for key in self.keys(below)}

    def stamps(self):
        """When each ledger entry was written, and its bytes' tag."""
        found = obstore.list(self.client, "ledger").collect()
        return {m["path"]: (m["last_modified"], m["e_tag"]) for m in found}


def start_bucket_server():
    """The process and the server in it."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("bucket_server.py"))],
        stdout=subprocess.PIPE,
        env={**os.environ, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"},
        text=True,
    )
    server = BucketServer(int(process.stdout.readline()))
    address = f"http://127.0.0.1:{server.port}/caches"
    urllib.request.urlopen(urllib.request.Request(address, method="PUT")).close()
    return process, server
