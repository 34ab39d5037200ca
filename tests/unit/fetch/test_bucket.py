"""Downloads from an S3 server on loopback: signatures, pins, checksums, and what a person reads if it cannot work."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_operator import cli
from qwen_operator.api.conditions import FETCH_FAILURES, Reason
from qwen_operator.checkpoints import records
from qwen_operator.fetch import bucket as buckets
from qwen_operator.fetch.bucket import Bucket, read_listing
from qwen_operator.fetch.faults import FetchError
from qwen_operator.fetch.heads import Heads
from qwen_operator.fetch.program import Fetch, Place
from qwen_operator.fetch.wire import Client, certificates
from qwen_runtime.inspect_checkpoint import examine
from tests.unit.fetch import s3
from tests.unit.fetch.s3 import BUCKET, URI, Store
from tests.unit.fetch.test_fetch import CHUNK, GIB, WANTED, contents, model
from tests.unit.fetch.test_wire import answering
from tests.unit.runtime.checkpoint import checkpoint
from tests.unit.runtime.gguf_files import qwen2

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with s3.serving() as one:
        yield one
        one.trust(10**9)


@pytest.fixture
def store(server: Store) -> Store:
    server.reset()
    return replace(server, keys={})


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a Secret. Until `check_signatures`, the server accepts any."""
    forget(monkeypatch)
    use(monkeypatch, {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"})


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN", "REGION", "DEFAULT_REGION"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)


def read(store: Store, folder: Path, revision: str = "", uri: str = URI, file: str = "") -> tuple[dict[str, Any], bool]:
    """What the inspection reports."""
    context = certificates()
    folder.mkdir()
    bucket = Bucket.of_uri(uri, store.address, revision, file)
    return Heads(bucket, lambda one: Client(one, context), sleep=lambda _seconds: None).report(folder)


def fetching(store: Store, root: Path, commit: str, uri: str = URI, **options: Any) -> Fetch:
    place = Place(root, options.pop("limit", GIB), "chat-0", 0, of_pod=options.pop("of_pod", False))
    quiet: dict[str, Any] = {"say": lambda _line: None, "sleep": lambda _seconds: None, "patience": 5.0}
    bucket = Bucket.of_uri(uri, store.address, commit, options.pop("file", ""))
    return Fetch(bucket, place, **quiet | options, chunk_bytes=CHUNK)


def commit_of(store: Store, folder: Path) -> str:
    report, complete = read(store, folder)
    assert complete, report
    return str(report["commit"])


def refusal(fetch: Fetch) -> FetchError:
    with pytest.raises(FetchError) as refused:
        fetch.run()
    assert refused.value.reason in FETCH_FAILURES
    return refused.value


def use(monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]) -> None:
    for name, value in keys.items():
        monkeypatch.setenv(name, value)


def test_the_facts_are_those_of_the_files(store: Store, tmp_path: Path) -> None:
    original = checkpoint(tmp_path / "original")
    store.put({path.name: path.read_bytes() for path in original.iterdir()})
    report, complete = read(store, tmp_path / "heads")
    assert complete, report
    commit = report.pop("commit")
    assert report == examine(original)[0]
    assert records.from_inspection(report | {"commit": commit}).commit == commit


def test_what_an_engine_needs_arrives_once(store: Store, tmp_path: Path) -> None:
    files = model()
    store.put(files)
    commit, said = commit_of(store, tmp_path / "heads"), list[str]()
    folder = fetching(store, tmp_path / "cache", commit, say=said.append).run()
    assert contents(folder) == {name: files[name] for name in WANTED}
    assert any("checks 5 files by the MD5 in their ETag" in line for line in said)
    again = fetching(store, tmp_path / "cache", commit)
    assert (again.run(), again.progress.total) == (folder, 0)


@pytest.mark.parametrize("split", [False, True])
def test_a_gguf_file_is_inspected_pinned_and_loaded_alone(split: bool, store: Store, tmp_path: Path) -> None:
    parts = qwen2().split(1, 9, name="q4/a") if split else {"q4/a.gguf": qwen2().bytes()}
    first = next(iter(parts))
    store.put(model() | parts)
    report, complete = read(store, tmp_path / "heads", file=first)
    assert complete, report
    commit = report["commit"]
    assert records.from_inspection(report).commit == commit
    folder = fetching(store, tmp_path / "cache", commit, file=first).run()
    assert contents(folder) == {"q4/a.gguf": qwen2().bytes()}
    store.put({"config.json": b"{}"})
    assert read(store, tmp_path / "again", file=first)[0]["commit"] == commit, "other files do not count"
    store.put({first: qwen2("Q8_0").bytes()})
    fetch = fetching(store, tmp_path / "other", commit, file=first)
    assert refusal(fetch).reason is Reason.SOURCE_CHANGED


def test_a_part_that_a_bucket_lacks_is_named(store: Store, tmp_path: Path) -> None:
    parts = qwen2().split(1, 9, name="a")
    first, second, _ = parts
    del parts[second]
    store.put(parts)
    report, _ = read(store, tmp_path / "heads", file=first)
    assert report["error"] == {
        "reason": "ModelNotFound",
        "message": f"the source has no file '{second}', one of the 3 parts of spec.source.file.",
    }


def test_more_objects_than_a_page_and_signs_in_their_names(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    prefix = "a b+c=d@e/ü"
    store.put({f"{number:04}.bin": b"" for number in range(10)} | model(), prefix=f"{prefix}/")
    context = certificates()
    bucket = Bucket(BUCKET, prefix, store.address)
    (tmp_path / "heads").mkdir()
    report, complete = Heads(bucket, lambda one: Client(one, context)).report(tmp_path / "heads")
    assert complete, report


def test_a_public_bucket_needs_no_credentials(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)
    store.put(model(), ACL="public-read")
    assert (fetching(store, tmp_path / "cache", commit_of(store, tmp_path / "heads")).run() / "config.json").exists()


def test_signatures_are_right_and_credentials_stay_out_of_messages(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = model()
    store.put(files)
    store.check_signatures()
    use(monkeypatch, store.keys)
    commit = commit_of(store, tmp_path / "heads")
    folder = fetching(store, tmp_path / "cache", commit).run()
    assert contents(folder)["model-1.safetensors"] == files["model-1.safetensors"]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "is private or does not exist"),
        ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN", "AWS_SECRET_ACCESS_KEY": "s3cret"}, "InvalidAccessKeyId"),
        ({"AWS_SECRET_ACCESS_KEY": "s3cret"}, "SignatureDoesNotMatch"),
        ({"AWS_ACCESS_KEY_ID": ""}, "needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_SECRET_ACCESS_KEY": "s3cret\nlines"}, "has no valid AWS_SECRET_ACCESS_KEY: each entry must"),
        ({"AWS_ACCESS_KEY_ID": "s3cret\r\nX: y"}, "has no valid AWS_ACCESS_KEY_ID: each entry must"),
        ({"AWS_SESSION_TOKEN": "s3cret \u201cx\u201d"}, "has no valid AWS_SESSION_TOKEN: each entry must"),
        ({"AWS_REGION": "s3cret\nX: y"}, "has no valid AWS_REGION: it must be the name of a region"),
        ({"AWS_REGION": "[s3cret"}, "has no valid AWS_REGION: it must be the name of a region"),
    ],
)
def test_wrong_credentials_are_told(
    keys: dict[str, str], says: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(model())
    if keys:
        store.check_signatures()
    else:
        forget(monkeypatch)
    use(monkeypatch, (store.keys if len(keys) == 1 else {}) | keys)
    report, complete = read(store, tmp_path / "heads")
    assert (complete, report["error"]["reason"]) == (False, "AuthRequired")
    assert says in report["error"]["message"]
    assert "s3cret" not in str(report)


def test_white_space_around_the_entries_does_not_matter(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put(model())
    store.check_signatures()
    use(monkeypatch, {name: f" {value}\n" for name, value in store.keys.items()})
    use(monkeypatch, {"AWS_REGION": "us-east-1\n", "AWS_SESSION_TOKEN": "\n"})
    assert commit_of(store, tmp_path / "heads")


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9"])
def test_no_address_is_made_of_a_wrong_region(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "evil.example.com/\n")
    with pytest.raises(FetchError, match="AWS_REGION") as refused:
        Bucket.of_uri(URI, endpoint, "").file_url("config.json")
    assert (refused.value.reason, "evil" in str(refused.value)) == ("AuthRequired", False)


def test_a_right_that_is_missing_is_told(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(model())
    store.check_signatures(("s3:ListBucket",))
    use(monkeypatch, store.keys)
    report, _ = read(store, tmp_path / "heads")
    assert report["error"]["reason"] == "AuthRequired"
    assert "403 AccessDenied): correct them; they must be allowed to list and to read" in report["error"]["message"]


@pytest.mark.parametrize(
    ("uri", "says"),
    [("s3://absent/qwen/chat", "404 NoSuchBucket"), (f"s3://{BUCKET}/qwen/ch", "has no objects")],
)
def test_a_missing_bucket_or_prefix_is_told(uri: str, says: str, store: Store, tmp_path: Path) -> None:
    store.put(model())
    report, _ = read(store, tmp_path / "heads", uri=uri)
    assert report["error"]["reason"] == "ModelNotFound"
    assert says in report["error"]["message"]


def test_a_missing_file_is_told(store: Store, tmp_path: Path) -> None:
    store.put({name: content for name, content in model().items() if name != "config.json"})
    report, _ = read(store, tmp_path / "heads")
    assert report["error"]["reason"] == "ModelNotFound"
    assert "config.json" in report["error"]["message"]


def test_other_files_than_the_pinned_ones_are_refused(store: Store, tmp_path: Path) -> None:
    files = model()
    store.put(files)
    commit = commit_of(store, tmp_path / "heads")
    # What no engine loads does not count.
    store.put({"README.md": b"another", "log.txt.gz": b"x"})
    assert commit_of(store, tmp_path / "more") == commit
    store.put({"config.json": files["config.json"] + b" "})
    report, _ = read(store, tmp_path / "again", revision=commit)
    assert report["error"]["reason"] == "SourceChanged"
    refused = refusal(fetching(store, tmp_path / "cache", commit))
    assert refused.reason == "SourceChanged"
    assert "set the annotation qwen-operator.dev/replan to a new value to serve these" in str(refused)


def test_what_changes_during_the_download_is_refused(store: Store, tmp_path: Path) -> None:
    files = model()
    store.put(files)
    commit = commit_of(store, tmp_path / "heads")

    def said(line: str) -> None:
        if line.startswith("downloads "):
            store.put({"model-1.safetensors": files["model-1.safetensors"][::-1]})

    refused = refusal(fetching(store, tmp_path / "cache", commit, say=said))
    assert (refused.reason, "model-1.safetensors is another one now" in str(refused)) == ("SourceChanged", True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ChecksumAlgorithm": "SHA256"}, "by their sha256"),
        ({"ServerSideEncryption": "aws:kms"}, "by their size alone"),
        ({"ServerSideEncryption": "aws:kms", "ChecksumAlgorithm": "CRC32"}, "by their CRC-32"),
        ({"ServerSideEncryption": "AES256"}, "by the MD5 in their ETag"),
    ],
)
def test_the_best_checksum_is_used(options: dict[str, str], says: str, store: Store, tmp_path: Path) -> None:
    store.put(model(), **options)
    said = list[str]()
    fetching(store, tmp_path / "cache", commit_of(store, tmp_path / "heads"), say=said.append).run()
    assert any(says in line for line in said), said


def test_an_object_in_parts_is_checked_too(store: Store, tmp_path: Path) -> None:
    files, said = model(12 << 20), list[str]()
    store.put({name: content for name, content in files.items() if name != "model-1.safetensors"})
    store.put_in_parts("model-1.safetensors", files["model-1.safetensors"], 5 << 20)
    commit = commit_of(store, tmp_path / "heads")
    folder = fetching(store, tmp_path / "cache", commit, say=said.append).run()
    assert contents(folder)["model-1.safetensors"] == files["model-1.safetensors"]
    assert any("1 files by the MD5 of the parts" in line for line in said), said


def test_a_wrong_byte_is_found(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = model()
    store.put(files)
    commit = commit_of(store, tmp_path / "heads")
    original = Client.get
    wanted = fetching(store, tmp_path / "cache", commit)

    def flipped(client: Client, url: str, content: str, first: int = 0, last: int | None = None) -> Any:
        # As if a proxy delivered the bytes of another range of the same length.
        shift = 1 if content == "model-1.safetensors" and last is not None and first >= CHUNK else 0
        return original(client, url, content, first - shift, None if last is None else last - shift)

    monkeypatch.setattr(Client, "get", flipped)
    refused = refusal(wanted)
    assert (refused.reason, "the store, its mirror or a proxy" in str(refused)) == ("ChecksumMismatch", True)


def test_no_room_is_told_with_both_numbers(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(model())
    commit = commit_of(store, tmp_path / "heads")
    refused = refusal(fetching(store, tmp_path / "cache", commit, limit=1000, of_pod=True))
    assert refused.reason == "DiskFull"
    assert "and the folder of the pod may have 0.0 MB, by the weights of the model: remove other" in str(refused)
    monkeypatch.setattr("qwen_operator.fetch.store.Store.free", lambda _store: 1000)
    refused = refusal(fetching(store, tmp_path / "cache", commit, of_pod=True))
    assert "MB more, and the node has room for 0.0 MB: set the chart value cache" in str(refused)


def test_a_region_that_the_store_names_is_used(tmp_path: Path) -> None:
    moved = b"HTTP/1.1 301 Moved\r\nx-amz-bucket-region: eu-central-1\r\nContent-Length: 0\r\n\r\n"
    empty = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
    page = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(empty), empty)
    with answering(moved, page) as (base, asked):
        bucket = Bucket.of_uri(URI, base, "")
        report, _ = Heads(bucket, lambda one: Client(one, certificates())).report(tmp_path)
    assert (bucket.region, len(asked)) == ("eu-central-1", 2)
    assert report["error"]["message"].startswith(f"{URI} has no objects")


WEIGHTS = "a/m.safetensors"


def page_of(keys: list[str], *, encoding: str = "", token: str = "", declared: str = "") -> bytes:
    """The answer with a page of the list of objects."""
    entries = "".join(f"<Contents><Key>{key}</Key><Size>1</Size><ETag>a</ETag></Contents>" for key in keys)
    entries += f"<EncodingType>{encoding}</EncodingType>" if encoding else ""
    entries += f"<IsTruncated>true</IsTruncated><NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    body = f"{head}<ListBucketResult>{entries}</ListBucketResult>".encode()
    return b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def listed(*pages: bytes) -> list[str]:
    with answering(*pages) as (base, asked):
        bucket = Bucket.of_uri("s3://weights/a", base, "")
        files = read_listing(Client(bucket, certificates()), bucket).files
    assert len(asked) == len(pages)
    return [file.path for file in files if file.path != "m.safetensors"]


@pytest.mark.parametrize(
    ("encoding", "key", "path"),
    [
        ("url", "a/b+c%2Bd%20e%C3%BC.json", "b c+d e\u00fc.json"),
        ("", "a/b+c%2Bd.json", "b+c%2Bd.json"),
        ("other", "a/b+c.json", "b+c.json"),
    ],
)
def test_names_are_decoded_if_the_store_says_so(encoding: str, key: str, path: str) -> None:
    assert listed(page_of([WEIGHTS, key], encoding=encoding)) == [path]


def test_a_list_of_many_pages_or_objects_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "_MOST_PAGES", 3)
    monkeypatch.setattr(buckets, "MOST_FILES", 5)
    pages = [page_of([], token=str(number)) for number in range(3)]
    with pytest.raises(FetchError, match=r"has more than 3 pages: name a prefix that has this model alone") as refused:
        listed(*pages)
    assert refused.value.reason == "InvalidConfig"
    # Folders count too, and those of the last page.
    for token in ("", "more"):
        with pytest.raises(FetchError, match=r"^s3://weights/a has more than 5 objects: name a prefix"):
            listed(page_of([f"a/{number}/" for number in range(6)], token=token))
    assert len(listed(page_of([WEIGHTS, *(f"a/{number}" for number in range(4))]))) == 4


@pytest.mark.parametrize("declared", ["UTF-8", "utf-16", "foo", "cp037"])
def test_a_list_is_read_as_utf8_whatever_it_names(declared: str) -> None:
    assert listed(page_of([WEIGHTS, "a/\u00fc"], declared=declared)) == ["\u00fc"]


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("<!DOCTYPE a><ListBucketResult/>", "utf-16"),
        ("<!DOCTYPE a><ListBucketResult/>", "utf-8-sig"),
        ("<ListBucketResult>\0</ListBucketResult>", "utf-8"),
        ("<ListBucketResult>\u00fc</ListBucketResult>", "latin-1"),
    ],
)
def test_a_list_in_another_encoding_is_refused(text: str, encoding: str) -> None:
    body = text.encode(encoding)
    with pytest.raises(FetchError, match="does not answer like an S3 server"):
        listed(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"200 OK\r\nContent-Length: 6\r\n\r\n<html>", "does not answer like an S3 server"),
        (b"200 OK\r\nContent-Length: 22\r\n\r\n<!DOCTYPE a [<!ENTITY b", "does not answer like an S3 server"),
        (b"200 OK\r\nContent-Length: 4\r\n\r\n<a/>", "does not answer like an S3 server"),
        (b"302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n", "the address of the store"),
        (b"400 Bad\r\nContent-Length: 0\r\n\r\n", "the store answered 400 for the list of objects"),
    ],
)
def test_what_is_no_store_is_told(answer: bytes, says: str, tmp_path: Path) -> None:
    with answering(b"HTTP/1.1 " + answer) as (base, asked):
        bucket = Bucket.of_uri(URI, base, "")
        report, _ = Heads(bucket, lambda one: Client(one, certificates())).report(tmp_path)
    assert report["error"]["reason"] == "HubUnreachable"
    assert says in report["error"]["message"]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("uri", "endpoint", "base"),
    [
        ("s3://weights/a", "", "https://weights.s3.us-east-1.amazonaws.com"),
        ("s3://with.dots/a", "", "https://s3.us-east-1.amazonaws.com/with.dots"),
        ("s3://weights/a", "http://minio:9000", "http://minio:9000/weights"),
        ("s3://weights/a", "https://weights.oss.example.com", "https://weights.oss.example.com"),
    ],
)
def test_the_address_of_a_bucket(uri: str, endpoint: str, base: str) -> None:
    bucket = Bucket.of_uri(uri, endpoint, "")
    assert (bucket.base, bucket.file_url("b c.json")) == (base, f"{base}/a/b%20c.json")


def test_a_region_of_china_has_its_own_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "cn-north-1")
    assert Bucket.of_uri(URI, "", "").base == "https://weights.s3.cn-north-1.amazonaws.com.cn"


def test_a_service_account_signs(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)
    token = tmp_path / "token"
    token.write_text("a.b.c")
    identity = {"WEB_IDENTITY_TOKEN_FILE": str(token), "ROLE_ARN": "arn:aws:iam::123456789012:role/reader"}
    use(monkeypatch, {f"AWS_{name}": value for name, value in identity.items()})
    given = {"AccessKeyId": "ASIA1", "SecretAccessKey": "s", "SessionToken": "t", "Expiration": "2999-01-01T00:00:00Z"}
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in given.items())
    inner = f"<AssumeRoleWithWebIdentityResult><Credentials>{inner}</Credentials></AssumeRoleWithWebIdentityResult>"
    body = f'<AssumeRoleWithWebIdentityResponse xmlns="https://s/">{inner}</AssumeRoleWithWebIdentityResponse>'
    answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    with answering(answer) as (sts, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts)
        bucket = Bucket.of_uri(URI, store.address, "")
        headers = [bucket.headers_for("GET", f"{bucket.base}/", {}) for _ in range(2)]
    assert len(asked) == 1
    assert headers[0]["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=ASIA1/")
    assert headers[0]["x-amz-security-token"] == "t"
    token.unlink()
    report, _ = read(store, tmp_path / "again")
    assert report["error"]["message"].startswith("the pod's service account gets no credentials (ValueError)")


def test_the_programs_of_the_pods(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = model()
    store.put(files)
    store.check_signatures()
    use(monkeypatch, store.keys)
    output, place = tmp_path / "log", [f"--s3={URI}", f"--endpoint={store.address}/"]
    assert cli.main(["inspect-s3", *place, f"--output={output}"]) == 0
    commit = records.from_inspection(json.loads(output.read_bytes())).commit
    cache = tmp_path / "cache"
    options = [f"--commit={commit}", f"--cache={cache}", "--size-gib=1", "--of-pod", "--port=0"]
    assert cli.main(["fetch", *place, *options]) == 0
    (folder,) = (cache / "models" / "s3").glob("*/*")
    assert folder.name == commit
    assert folder.parent.name.startswith("weights--chat-")
    assert contents(folder)["model-1.safetensors"] == files["model-1.safetensors"]
    assert cli.main(["fetch", "--repository=a/b", *place, *options]) == 2


def test_a_part_that_does_not_fit_is_no_checksum() -> None:
    from qwen_operator.fetch import checksums

    etag = "0" * 32 + "-3"
    assert checksums.of_parts(etag, 30, 10) == f"parts:{etag}:10"
    assert [checksums.of_parts(etag, 30, size) for size in (0, 9, 15, 31)] == [""] * 4
    assert checksums.digest(f"parts:{etag}:0") is None
    whole = checksums.digest(f"parts:{etag}:10")
    assert whole is not None
    data = random.Random(0).randbytes(30)
    for first in range(0, 30, 7):
        whole.update(data[first : first + 7])
    assert whole.hexdigest().endswith("-3:10")
