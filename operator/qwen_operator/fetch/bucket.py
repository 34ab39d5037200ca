"""A folder in a bucket of S3: its addresses, its list of files, and what its refusals mean."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from urllib.parse import quote, unquote, unquote_plus, urlsplit
from xml.etree import ElementTree

from minio.credentials.credentials import Credentials
from minio.credentials.providers import IamAwsProvider, Provider
from minio.signer import sign_v4_s3
from urllib3 import PoolManager, ProxyManager, Retry

from qwen_operator.api.conditions import Reason
from qwen_operator.api.spec import REPLAN_ANNOTATION
from qwen_operator.fetch import checksums
from qwen_operator.fetch.faults import FetchError
from qwen_operator.fetch.files import MOST_FILES, Listing, RemoteFile, chosen
from qwen_operator.fetch.wire import Client, certificates, proxy_for
from qwen_operator.manifests.model_cache import bucket_folder, bucket_location, model_folder
from qwen_runtime.checkpoints.model import MAX_BYTES

DEFAULT_REGION = "us-east-1"
"""MinIO and Ceph have it too, unless they are set up otherwise."""
_LARGEST_PAGE = 8 << 20
_MOST_PAGES = 100
"""AWS has 1000 objects on a page, but a store may give fewer, or pages without an end."""
_LARGEST_ERROR = 64 << 10
# OpenStack calls its first region RegionOne.
_REGION = re.compile(r"[A-Za-z0-9_-]{1,40}", re.ASCII)
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_KEY = re.compile(r"[!-~]{1,4096}", re.ASCII)
_IDENTITIES = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_OF_ITS_OWN = "name a prefix that has this model alone in spec.source.uri"
_SECRET = "the Secret of spec.source.secretRef"


class ElsewhereError(FetchError):
    """The bucket is in another region."""

    def __init__(self, region: str) -> None:
        super().__init__(Reason.HUB_UNREACHABLE, f"the bucket is in the region {region}")
        self.region = region


@dataclass(frozen=True, slots=True)
class _OfSecret(Provider):
    """The keys of a Secret, as they were when the program started: each adapter has its own."""

    access_key: str
    secret_key: str
    session_token: str

    def retrieve(self) -> Credentials:
        return Credentials(self.access_key, self.secret_key, self.session_token or None)


def provider_of(environ: dict[str, str]) -> Provider | None:
    """Who gives the credentials: the Secret, or the identity of the pod's service account; None without either.

    The role of the node is no choice: all pods of the node would have it.
    """
    if "AWS_ACCESS_KEY_ID" in environ:
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        return _OfSecret(*(environ.get(name, "") for name in names))
    if any(environ.get(name) for name in _IDENTITIES):
        sts = environ.get("AWS_ENDPOINT_URL_STS")
        return IamAwsProvider(custom_endpoint=sts, http_client=_http_client(sts or "https://sts.amazonaws.com"))
    return None


def _http_client(url: str) -> PoolManager:
    """A client for a service that gives credentials. Those on the node have addresses that no proxy knows."""
    scheme, netloc = urlsplit(url)[:2]
    proxy = proxy_for(scheme, netloc) if os.environ.get(_IDENTITIES[0]) else ""
    retries = Retry(total=3, backoff_factor=0.5)
    if proxy:
        return ProxyManager(f"http://{proxy}", ssl_context=certificates(), retries=retries)
    return PoolManager(ssl_context=certificates(), retries=retries)


@dataclass(slots=True)
class Signer:
    """Signs requests for all threads. Without a provider it signs nothing, so only public buckets can be read."""

    provider: Provider | None
    of_secret: bool = True
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def from_environment(cls) -> Signer:
        environ = dict(os.environ)
        return cls(provider_of(environ), "AWS_ACCESS_KEY_ID" in environ)

    def signed(self, method: str, url: str, headers: dict[str, str], region: str) -> dict[str, str]:
        """The headers with a signature, which covers all of them. Raises FetchError without valid credentials."""
        if self.provider is None:
            return headers
        credentials, now, parts = self._credentials(self.provider), self.now(), urlsplit(url)
        dated = {
            **headers,
            "Host": parts.netloc,
            "x-amz-content-sha256": "UNSIGNED-PAYLOAD",
            "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
            **({"x-amz-security-token": credentials.session_token} if credentials.session_token else {}),
        }
        given = dict[str, str | list[str] | tuple[str]](dated)
        made = sign_v4_s3(
            method=method,
            url=parts,
            region=region,
            headers=given,
            credentials=credentials,
            content_sha256="UNSIGNED-PAYLOAD",
            date=now,
        )
        return dated | {"Authorization": str(made["Authorization"])}

    def _credentials(self, provider: Provider) -> Credentials:
        try:
            with self._lock:
                credentials = provider.retrieve()
        except Exception as error:
            # The library raises whatever its HTTP client and its readers of XML and JSON raise.
            if self.of_secret:
                cure = "it needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                raise FetchError(Reason.AUTH_REQUIRED, f"{_SECRET} has no credentials: {cure}") from None
            message = f"the pod's service account gets no credentials ({type(error).__name__}): correct its role"
            raise FetchError(Reason.AUTH_REQUIRED, message) from None
        texts = {
            "AWS_ACCESS_KEY_ID": credentials.access_key.strip(),
            "AWS_SECRET_ACCESS_KEY": credentials.secret_key.strip(),
        }
        if token := (credentials.session_token or "").strip():
            texts["AWS_SESSION_TOKEN"] = token
        if wrong := [name for name, text in texts.items() if _KEY.fullmatch(text) is None]:
            whose = _SECRET if self.of_secret else "the role of the pod's service account"
            cure = "each entry must have one line of letters, digits and signs, without white space"
            raise FetchError(Reason.AUTH_REQUIRED, f"{whose} has no valid {' and '.join(wrong)}: {cure}")
        return Credentials(texts["AWS_ACCESS_KEY_ID"], texts["AWS_SECRET_ACCESS_KEY"], token or None)


@dataclass(slots=True)
class Bucket:
    """The objects of a bucket below a prefix. `endpoint` is "" for AWS.

    `commit` is the digest that the objects must have, "" for any. `etags` has the ETags of the listed files by path.
    `file`: the only file to load, with its parts; "" for all that an engine needs. `place`: its folder below `models`
    of a cache, if that does not follow from the rest.
    """

    name: str
    prefix: str
    endpoint: str = ""
    commit: str = ""
    region: str = DEFAULT_REGION
    file: str = ""
    signer: Signer = field(default_factory=Signer.from_environment)
    etags: dict[str, str] = field(default_factory=dict)
    place: str = ""

    @classmethod
    def of_uri(cls, uri: str, endpoint: str, commit: str, file: str = "") -> Bucket:
        """The bucket of s3://BUCKET/PREFIX, in the region of the environment."""
        name, prefix = bucket_location(uri.partition("://")[2])
        given = (os.environ.get(name, "").strip() for name in ("AWS_REGION", "AWS_DEFAULT_REGION"))
        region = next(filter(None, given), DEFAULT_REGION)
        return cls(name, prefix, endpoint.rstrip("/"), commit, region, file)

    @property
    def base(self) -> str:
        """Raises FetchError if no address and no signature can have the region."""
        if _REGION.fullmatch(self.region) is None:
            whose = _SECRET if self.signer.of_secret else "the pod's environment"
            cure = "it must be the name of a region, of letters, digits, - and _; right would be us-east-1"
            raise FetchError(Reason.AUTH_REQUIRED, f"{whose} has no valid AWS_REGION: {cure}")
        if not self.endpoint:
            suffix = ".cn" if self.region.startswith("cn-") else ""
            host = f"s3.{self.region}.amazonaws.com{suffix}"
            # The certificate of AWS has no name with further dots.
            return f"https://{host}/{self.name}" if "." in self.name else f"https://{self.name}.{host}"
        host = urlsplit(self.endpoint).hostname or ""
        return self.endpoint if host.startswith(f"{self.name}.") else f"{self.endpoint}/{self.name}"

    @property
    def repository(self) -> str:
        return f"{self.name}/{self.prefix}" if self.prefix else self.name

    @property
    def folder(self) -> str:
        return self.place or model_folder("s3", bucket_folder(self.repository), self.commit, self.file)

    server = "the store"
    address_field = "spec.source.endpoint"
    redirects = False

    def __str__(self) -> str:
        return f"s3://{self.repository}"

    def at(self, commit: str) -> Bucket:
        return replace(self, commit=commit)

    def file_url(self, path: str) -> str:
        return f"{self._start}{quote(path)}"

    @property
    def _start(self) -> str:
        """What the addresses of all files begin with."""
        return f"{self.base}/{quote(self.prefix)}/" if self.prefix else f"{self.base}/"

    def headers_for(self, method: str, url: str, given: dict[str, str]) -> dict[str, str]:
        etag = self.etags.get(unquote(url.removeprefix(self._start))) if method == "GET" else None
        return self.signer.signed(method, url, given | ({"If-Match": f'"{etag}"'} if etag else {}), self.region)

    def refusal(self, response: http.client.HTTPResponse, content: str) -> FetchError:
        status, region = response.status, response.headers.get("x-amz-bucket-region", "")
        if status in (301, 307, 308, 400, 403) and _REGION.fullmatch(region) and region != self.region:
            return ElsewhereError(region)
        code = _code(response)
        answered = f"the store answered {status}{f' {code}' if code else ''}"
        if status in (401, 403) or code in ("InvalidAccessKeyId", "InvalidToken", "ExpiredToken"):
            return FetchError(Reason.AUTH_REQUIRED, self._forbidden(code, answered))
        if status == 412 or (status == 404 and code != "NoSuchBucket" and content in self.etags):
            return changed(self, f"{content} is another one now, or is gone")
        if status == 404:
            cure = "correct spec.source.uri or spec.source.endpoint"
            return FetchError(Reason.MODEL_NOT_FOUND, f"{content} of {self} does not exist ({answered}): {cure}")
        cure = "; spec.source.endpoint must be the address of the store itself" if 300 <= status < 400 else ""
        return FetchError(Reason.HUB_UNREACHABLE, f"{answered} for {content} of {self}{cure}")

    def _forbidden(self, code: str, answered: str) -> str:
        if code == "RequestTimeTooSkewed":
            return f"{self} cannot be read ({answered}): the clock of the node is wrong"
        if self.signer.provider is None:
            return f"{self} is private or does not exist ({answered}): name a Secret in spec.source.secretRef"
        who = f"the credentials in {_SECRET}" if self.signer.of_secret else "the role of the pod's service account"
        return f"{self} refuses {who} ({answered}): correct them; they must be allowed to list and to read the objects"


def changed(bucket: Bucket, what: str) -> FetchError:
    """The error that the files are others than those of the inspection."""
    cure = f"put the earlier files back, or set the annotation {REPLAN_ANNOTATION} to a new value to serve these"
    return FetchError(Reason.SOURCE_CHANGED, f"the files of {bucket} were changed ({what}): {cure}")


def read_listing(client: Client, bucket: Bucket) -> Listing:
    """The files below the prefix, and their digest. Raises as `Client.get` does, and if they have another digest."""
    try:
        objects = _objects(client, bucket)
    except ElsewhereError as elsewhere:
        bucket.region = elsewhere.region
        objects = _objects(client, bucket)
    finally:
        client.close()
    if not objects:
        cure = "correct spec.source.uri, or upload the files"
        raise FetchError(Reason.MODEL_NOT_FOUND, f"{bucket} has no objects: {cure}")
    files = tuple(file for file, _ in objects)
    etags = {file.path: etag for file, etag in objects}
    commit = digest_of(chosen(files, bucket.file), etags)
    if bucket.commit and commit != bucket.commit:
        raise changed(bucket, f"status.model.commit and spec.source.revision would be {commit}, not {bucket.commit}")
    bucket.etags = etags
    return Listing(commit, files)


def digest_of(files: Sequence[RemoteFile], etags: dict[str, str]) -> str:
    """40 hexadecimal digits that stand for these files: their paths, sizes and ETags."""
    lines = sorted(f"{file.path}\0{file.size}\0{etags[file.path]}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:40]


def with_checksums(client: Client, bucket: Bucket, files: Sequence[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The files with the checksums that the store gives. Raises as `Client.get` does."""
    try:
        return tuple(replace(file, checksum=_checksum(client, bucket, file)) for file in files)
    finally:
        client.close()


def _checksum(client: Client, bucket: Bucket, file: RemoteFile) -> str:
    url = bucket.file_url(file.path)
    etag = bucket.etags[file.path]
    headers = client.head(url, file.path, {"x-amz-checksum-mode": "ENABLED"})
    if found := checksums.of_object(headers, etag):
        return found
    parts = checksums.parts_in(headers, etag)
    if not parts:
        return ""
    try:
        of_part = client.head(f"{url}?partNumber=1", file.path, {})
    except FetchError:
        # Not every store knows parts.
        return ""
    length = of_part.get("content-length", "")
    told = of_part.get("x-amz-mp-parts-count") == str(parts) and length.isascii() and length.isdigit()
    return checksums.of_parts(etag, file.size, int(length[:20])) if told else ""


def _objects(client: Client, bucket: Bucket) -> list[tuple[RemoteFile, str]]:
    """The objects below the prefix, with their ETags."""
    found: list[tuple[RemoteFile, str]] = []
    start, token, count = f"{bucket.prefix}/" if bucket.prefix else "", "", 0
    for _ in range(_MOST_PAGES):
        page = _page(client, bucket, start, token)
        decoded = unquote_plus if page.findtext("EncodingType") == "url" else str
        for entry in page.iter("Contents"):
            count += 1
            path, size = decoded(entry.findtext("Key") or "").removeprefix(start), entry.findtext("Size") or ""
            etag = (entry.findtext("ETag") or "").strip('"')
            if path and not path.endswith("/"):
                found.append((RemoteFile(path, _size(size)), etag if _KEY.fullmatch(etag) else ""))
        if count > MOST_FILES:
            raise FetchError(Reason.INVALID_CONFIG, f"{bucket} has more than {MOST_FILES} objects: {_OF_ITS_OWN}")
        token = page.findtext("NextContinuationToken") or ""
        if page.findtext("IsTruncated") != "true" or not token:
            return found
    message = f"the list of the objects of {bucket} has more than {_MOST_PAGES} pages: {_OF_ITS_OWN}"
    raise FetchError(Reason.INVALID_CONFIG, message)


def _page(client: Client, bucket: Bucket, start: str, token: str) -> ElementTree.Element:
    # In the order of their names, as the signature needs them.
    query = [("continuation-token", token)] if token else []
    query += [("encoding-type", "url"), ("list-type", "2"), ("prefix", start)]
    joined = "&".join(f"{name}={quote(value, safe='')}" for name, value in query)
    raw = client.read_all(f"{bucket.base}/?{joined}", "the list of objects", _LARGEST_PAGE)
    wrong = f"{bucket.base} does not answer like an S3 server: check {bucket.address_field}"
    try:
        text = raw.decode("utf-8-sig")
        if "<!DOCTYPE" in text or "\0" in text:
            raise FetchError(Reason.HUB_UNREACHABLE, wrong)
        # Of text, the parser does not follow the encoding that the page names, so it reads what was searched.
        page = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError):
        raise FetchError(Reason.HUB_UNREACHABLE, wrong) from None
    for element in page.iter():
        element.tag = element.tag.rpartition("}")[2]
    if page.tag != "ListBucketResult":
        raise FetchError(Reason.HUB_UNREACHABLE, wrong)
    return page


def _code(response: http.client.HTTPResponse) -> str:
    body = b""
    with contextlib.suppress(OSError, http.client.HTTPException):
        body = response.read(_LARGEST_ERROR)
    match = _CODE.search(body)
    return match[1].decode() if match else ""


def _size(text: str) -> int:
    valid = text.isascii() and text.isdigit() and len(text) < 20
    return int(text) if valid and int(text) <= MAX_BYTES else -1
