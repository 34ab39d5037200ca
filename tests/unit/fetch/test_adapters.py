"""LoRA adapters of a hub and of a bucket on loopback: read before an engine starts, and fetched as they were read."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from qwen_operator import cli
from qwen_operator.checkpoints.adapters import InspectedAdapter, of_report
from qwen_operator.cli.fetch import adapter_of
from qwen_operator.fetch import program
from qwen_operator.fetch.contents import Contents
from qwen_operator.fetch.program import Fetch, Place
from qwen_operator.fetch.store import Entry, Store
from qwen_operator.manifests.cached_adapters import adapter_path
from qwen_operator.manifests.model_cache import bucket_folder, model_folder
from qwen_runtime import adapter_list
from qwen_runtime.adapters import UNLOAD_SECONDS
from qwen_runtime.checkpoints.adapter import ADAPTER_CONFIG
from qwen_runtime.inspect_checkpoint import examine
from qwen_runtime.report import LIMIT_BYTES, bounded
from tests.unit.fetch import s3
from tests.unit.fetch.hub import COMMIT, REPOSITORY, FileHub, serving
from tests.unit.fetch.test_fetch import contents
from tests.unit.runtime.adapter_files import adapter
from tests.unit.runtime.checkpoint import checkpoint
from tests.unit.runtime.test_adapters import Pod

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def files(folder: Path, **more: Any) -> dict[str, bytes]:
    """Those of an adapter, with others that nobody needs."""
    made = {path.name: path.read_bytes() for path in adapter(folder, **more).iterdir()}
    return made | {"README.md": b"#", "optimizer.pt": b"large", "checkpoint-10/adapter_model.safetensors": b"old"}


def inspected(folder: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of the command."""
    output = folder / "log"
    code = cli.main(["inspect-adapters", *options, f"--output={output}"])
    report: dict[str, Any] = json.loads(output.read_bytes())
    return code, report


def fetched(cache: Path, *options: str) -> int:
    return cli.main(["fetch", *options, f"--cache={cache}", "--size-gib=1", "--port=0"])


def hub_place(hub: FileHub) -> str:
    return f"--hub=hf --hub-url={hub.address} --repository={REPOSITORY}"


def test_adapters_of_three_places_are_read_together_and_each_with_its_own_credentials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local, hub_files, bucket_files = adapter(tmp_path / "a"), files(tmp_path / "b", rank=4), files(tmp_path / "c")
    monkeypatch.setenv("ADAPTER_0_QWEN_HUB_TOKEN", "t")
    monkeypatch.setenv("QWEN_HUB_TOKEN", "the token of the model")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    with s3.serving() as store, serving(FileHub(hub_files, token="t")) as hub:
        store.reset()
        store.put(bucket_files)
        store.check_signatures()
        for name, value in store.keys.items():
            monkeypatch.setenv(f"ADAPTER_1_{name}", value)
        bucket = f"--s3={s3.URI} --endpoint={store.address}"
        options = [f"--remote=b {hub_place(hub)} --commit=main", f"--remote=c {bucket} --commit="]
        code, report = inspected(tmp_path, f"--path={checkpoint(tmp_path / 'm')}", f"--adapter=a={local}", *options)
        assert code == 0, report
        assert not [path for path in hub.asked if "optimizer" in path or "checkpoint-10" in path]
        folders = [(name, tmp_path / name) for name in "abc"]
        assert report["adapters"] == examine(None, folders)[0]["adapters"]
        assert report["weightBytes"]
        none, commit, digest = report["adapterCommits"]
        assert (none, commit, len(digest)) == ("", COMMIT, 40)

        cache = tmp_path / "cache"
        loaded = [f"--adapter={hub_place(hub)} --commit={commit}", f"--adapter={bucket} --commit={digest}"]
        assert fetched(cache, *loaded) == 0
        of_hub = cache / "models" / model_folder("hf", REPOSITORY, commit, ADAPTER_CONFIG)
        of_bucket = cache / "models" / model_folder("s3", bucket_folder("weights/qwen/chat"), digest, ADAPTER_CONFIG)
        for folder, original in ((of_hub, hub_files), (of_bucket, bucket_files)):
            assert contents(folder) == {name: original[name] for name in contents(tmp_path / "a")}
        hub.asked.clear()
        assert fetched(cache, *loaded) == 0
        assert hub.asked == []


@pytest.mark.parametrize(
    ("damage", "reason", "message"),
    [
        ({"token": "x"}, "AuthRequired", "a token in spec.adapters[b].source.secretRef"),
        (
            {"files": {"config.json": b"{}"}},
            "ModelNotFound",
            "spec.adapters[b]: there is no adapter_config.json",
        ),
        (
            {"rank": 4, "r": 8},
            "AdapterMismatch",
            f"spec.adapters[b] in hf://{REPOSITORY} at main: adapter_config.json: r is 8, but",
        ),
        ({"cut": True}, "TruncatedWeights", "spec.adapters[b]: adapter_model.safetensors"),
    ],
)
def test_what_cannot_be_served_is_told_with_the_field_of_the_adapter(
    damage: dict[str, Any], reason: str, message: str, tmp_path: Path
) -> None:
    made = files(tmp_path / "b", **{key: value for key, value in damage.items() if key in ("rank", "r")})
    if "cut" in damage:
        made["adapter_model.safetensors"] = made["adapter_model.safetensors"][:-1]
    with serving(FileHub(damage.get("files", made), token=damage.get("token", ""))) as hub:
        code, report = inspected(tmp_path, f"--remote=b {hub_place(hub)} --commit=main")
    assert (code, report["error"]["reason"]) == (1, reason)
    assert message in report["error"]["message"]


def test_an_adapter_that_cannot_be_fetched_is_named_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(FileHub(files(tmp_path / "b"), missing={ADAPTER_CONFIG})) as hub:
        options = [f"--repository={REPOSITORY}", f"--hub-url={hub.address}", f"--commit={COMMIT}"]
        assert fetched(tmp_path / "cache", *options, f"--adapter={hub_place(hub)} --commit={COMMIT}") == 1
        assert not [path for path in hub.asked if "config.json" in path and ADAPTER_CONFIG not in path]
    assert f"ModelNotFound: hf://{REPOSITORY} at {COMMIT[:12]}: adapter_config.json of" in capsys.readouterr().err


@dataclass(slots=True)
class Slow(Fetch):
    """A model that takes longer than a lease. Meanwhile, another pod may need the room of the adapter."""

    adapter: Entry | None = None
    needs_room: bool = False

    def run(self) -> Path:
        entry = self.adapter
        assert entry is not None
        (lease,) = (entry.root / "leases" / entry.key).iterdir()
        os.utime(lease, (0, 0))
        store = Store(entry.root, 1 << 30)
        assert not next(one for one in store.cached() if one.key == entry.key).busy
        if self.needs_room:
            assert store.remove(entry.key)
        return entry.root


@pytest.mark.parametrize("needs_room", [True, False])
def test_an_adapter_is_there_and_stays_when_the_model_took_longer_than_a_lease(
    needs_room: bool, tmp_path: Path
) -> None:
    with serving(FileHub(files(tmp_path / "b"))) as hub:
        place, remote = (
            Place(tmp_path / "cache", 1 << 30, "chat-0", 0),
            adapter_of(f"{hub_place(hub)} --commit={COMMIT}"),
        )
        entry = Entry(place.root, remote)
        model = Slow(remote, place, adapter=entry, needs_room=needs_room)
        assert program.main(model, tmp_path / "told", [("b", Fetch(remote, place))]) == 0
        assert contents(entry.folder) == contents(tmp_path / "b")
        (cached,) = Store(place.root, 1 << 30).cached()
        assert (entry.is_complete(), cached.busy) == (True, True)
        assert len([path for path in hub.asked if path.endswith(ADAPTER_CONFIG)]) == (2 if needs_room else 1)


FOLDER = f"adapters/hf--Qwen--Test/{COMMIT}-123456789abc"


def listing(folder: Path, **wanted: str) -> str:
    """The option with the list of an engine."""
    folder.mkdir(exist_ok=True)
    (folder / "wanted").write_text(json.dumps(wanted))
    return f"--adapters={folder}"


def test_an_adapter_for_engines_that_serve_is_where_they_look_for_it(tmp_path: Path) -> None:
    cache, made = tmp_path / "cache", files(tmp_path / "b")
    with serving(FileHub(made)) as hub:
        option = f"--adapter={hub_place(hub)} --commit={COMMIT} --folder={FOLDER}"
        assert fetched(cache, option) == 0
        asked = len(hub.asked)
        assert fetched(cache, option, listing(tmp_path / "list", b=adapter_path(FOLDER))) == 0
        assert len(hub.asked) == asked
    assert contents(cache / "models" / FOLDER) == contents(tmp_path / "b")
    assert adapter_path(FOLDER) == f"/models/adapters/.fetched/hf--Qwen--Test/{COMMIT}-123456789abc"
    (item,) = Contents(Store(cache, 1 << 30)).items()
    assert (item.hub, item.repository) == ("hf", "Qwen/Test")
    (gone,) = Contents(Store(cache, 1 << 30), frozenset()).remove([item.key])
    assert not gone.removed, "its pod may be newer than the list of pods"


def test_an_engine_that_serves_loads_what_is_fetched_and_keeps_it_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter_list, "ROOT", f"{tmp_path}/")
    cache, engine = tmp_path / "cache", Pod(tmp_path)
    engine.loader.fetched = f"{cache}/models/adapters/"
    wanted = engine.wants(b=f"{cache}/models/{FOLDER}")
    engine.wait(1)
    assert engine.loader.page() == {"wanted": wanted, "loaded": [], "failed": {}}
    with serving(FileHub(files(tmp_path / "b"))) as hub:
        assert fetched(cache, f"--adapter={hub_place(hub)} --commit={COMMIT} --folder={FOLDER}") == 0
    engine.wait(0.25)
    assert engine.loader.page() == {"wanted": wanted, "loaded": ["b"], "failed": {}}
    store, key = Store(cache, 1 << 30), FOLDER.replace("/", "--")
    assert not store.remove(key)
    engine.wants()
    engine.wait(UNLOAD_SECONDS + 1)
    assert engine.engine.has == {}
    assert store.remove(key)


def test_one_that_is_not_in_the_list_any_more_is_not_asked_for(tmp_path: Path) -> None:
    cache, other = tmp_path / "cache", adapter_path(FOLDER.replace("Test", "Other"))
    with serving(FileHub(files(tmp_path / "b"), missing={ADAPTER_CONFIG})) as hub:
        option = f"--adapter={hub_place(hub)} --commit={COMMIT} --folder={FOLDER}"
        assert fetched(cache, option, listing(tmp_path / "list", b=other)) == 0
        assert hub.asked == []
        assert (cache / "models" / "adapters").is_dir(), "the engine mounts it"
        (tmp_path / "list" / "wanted").write_text("[")
        assert fetched(cache, option, f"--adapters={tmp_path / 'list'}") == 1
        assert hub.asked
    assert fetched(cache, listing(tmp_path / "list")) == 0


@pytest.mark.parametrize("folder", ["models/a/b", "adapters/a", "adapters/../b", "adapters/a/b/c", "/adapters/a/b"])
def test_no_option_names_another_folder_of_the_cache(folder: str, tmp_path: Path) -> None:
    option = f"--adapter=--hub=hf --repository={REPOSITORY} --commit={COMMIT} --folder={folder}"
    with pytest.raises(SystemExit):
        fetched(tmp_path, option)


def test_a_command_without_anything_to_fetch_is_refused(tmp_path: Path) -> None:
    assert fetched(tmp_path) == 2
    assert fetched(tmp_path, f"--repository={REPOSITORY}") == 2


def test_the_report_on_sixteen_adapters_fits(tmp_path: Path) -> None:
    names = [f"{number:02}" for number in range(16)]
    folders = [(name, adapter(tmp_path / name)) for name in names]
    report, complete = examine(checkpoint(tmp_path / "model"), folders)
    assert complete
    report |= {"adapterCommits": [COMMIT] * 16}
    data = bounded(report)
    assert len(data) < LIMIT_BYTES
    read = of_report([(name, f"hf://team/{name}") for name in names], json.loads(data))
    assert {one.commit for one in read} == {COMMIT}
    assert InspectedAdapter(names[0], "hf://team/00", read[0].facts, COMMIT) == read[0]
