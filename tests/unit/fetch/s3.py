"""An S3 server on loopback (moto), which checks signatures with another library than the one that makes them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from urllib.request import Request, urlopen

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import boto3
    from botocore.config import Config
    from moto.server import ThreadedMotoServer

BUCKET = "weights"
URI = f"s3://{BUCKET}/qwen/chat"


@cache
def _client(service: str, address: str) -> Any:
    """It reads the model of its service from large files, so there is one."""
    keys = {"aws_access_key_id": "admin", "aws_secret_access_key": "admin"}
    # Without it, the library adds a checksum to everything.
    config = Config(request_checksum_calculation="when_required")
    return boto3.client(service, endpoint_url=address, region_name="us-east-1", config=config, **keys)


@dataclass
class Store:
    """The server and its bucket. `keys` has the entries of a Secret that may read, after `check_signatures`."""

    address: str
    keys: dict[str, str] = field(default_factory=dict)

    def client(self, service: str = "s3") -> Any:
        return _client(service, self.address)

    def put(self, files: dict[str, bytes], prefix: str = "qwen/chat/", **options: str) -> None:
        client = self.client()
        for path, content in files.items():
            client.put_object(Bucket=BUCKET, Key=prefix + path, Body=content, **options)

    def put_in_parts(self, path: str, content: bytes, size: int) -> None:
        client, place = self.client(), {"Bucket": BUCKET, "Key": f"qwen/chat/{path}"}
        upload = client.create_multipart_upload(**place)["UploadId"]
        parts = []
        for number, first in enumerate(range(0, len(content), size), 1):
            piece = content[first : first + size]
            made = client.upload_part(**place, UploadId=upload, PartNumber=number, Body=piece)
            parts.append({"PartNumber": number, "ETag": made["ETag"]})
        client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})

    def check_signatures(self, actions: tuple[str, ...] = ("s3:ListBucket", "s3:GetObject")) -> None:
        """From now on, only the user with `keys` may do `actions`, and nobody anything else."""
        iam = self.client("iam")
        iam.create_user(UserName="reader")
        allowed = [{"Effect": "Allow", "Action": list(actions), "Resource": "*"}]
        document = json.dumps({"Version": "2012-10-17", "Statement": allowed})
        iam.put_user_policy(UserName="reader", PolicyName="read", PolicyDocument=document)
        key = iam.create_access_key(UserName="reader")["AccessKey"]
        self.keys = {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}
        self.trust(0)

    def trust(self, requests: int) -> None:
        """So many requests need no right."""
        self.ask("reset-auth", str(requests).encode())

    def reset(self) -> None:
        """Leave one empty bucket, which accepts any signature."""
        self.trust(10**9)
        self.ask("reset")
        self.client().create_bucket(Bucket=BUCKET)

    def ask(self, what: str, body: bytes = b"") -> None:
        """A request of moto's own."""
        plain = {"Content-Type": "text/plain"}
        urlopen(Request(f"{self.address}/moto-api/{what}", body, plain, method="POST")).read()


@contextmanager
def serving() -> Iterator[Store]:
    """A server, until the block ends. Call `reset` before its first use."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield Store(f"http://{host}:{port}")
    finally:
        server.stop()
