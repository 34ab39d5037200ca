"""Keys and tenants as the mounted files give them: what is taken over, and what is refused in which words."""

import json

import pytest

from qwen_operator.gateway.settings import ProxySettings, SettingsError
from qwen_operator.gateway.tenants import Frame, Keys, Tenants, digest, read_keys, read_tenants, settings_file

FRAME = Frame(True, 1000, 10_000, 60, ())


def test_an_entry_has_one_key_per_line() -> None:
    keys = read_keys({"a": "one\n", "b": "two\r\n\nthree\ntwo", "default": "four"}, {})

    assert keys == Keys({"a": ("one",), "b": ("two", "three"), "default": ("four",)})


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"a:b": "secret"}, "the tenant id 'a:b' is not usable"),
        ({"a b": "secret"}, "the tenant id 'a b' is not usable"),
        ({"a": ""}, "the entry of tenant 'a' is empty; it must have one key per line"),
        ({"a": "\n\r\n"}, "the entry of tenant 'a' is empty"),
        ({"a": "good\nse cret"}, "key 2 of tenant 'a' is not usable; a key is one word"),
        ({"a": "secrét"}, "key 1 of tenant 'a' is not usable"),
        ({"a": "secret" * 100}, "at most 512 printable ASCII characters"),
        ({"a": "\n".join(f"secret{n}" for n in range(65))}, "tenant 'a' has 65 keys; at most 64 are allowed"),
        ({"a": "secret", "b": "x\nsecret"}, "the tenants 'a' and 'b' have the same key; each needs its own"),
    ],
)
def test_an_entry_that_is_refused_is_told_without_its_key(entries: dict[str, str], words: str) -> None:
    keys = read_keys({**entries, "good": "other"}, {})

    assert keys.of == {"good": ("other",)}
    assert words in keys.problems[0]
    assert "cr" not in "".join(keys.problems).replace("characters", "")


def test_a_refused_entry_keeps_its_last_good_keys_and_a_removed_one_none() -> None:
    before = {"a": ("old-a",), "b": ("old-b",), "c": ("old-c",)}

    keys = read_keys({"a": "two words", "b": "new-b"}, before)

    assert keys.of == {"a": ("old-a",), "b": ("new-b",)}


def test_a_key_that_moved_belongs_to_the_valid_entry() -> None:
    keys = read_keys({"a": "two words", "b": "old-a"}, {"a": ("old-a", "old-2")})

    assert keys.of == {"a": ("old-2",), "b": ("old-a",)}


def test_a_tenant_has_the_defaults_for_what_it_does_not_say() -> None:
    text = '{"defaults": {"requestsPerMinute": 60}, "tenants": {"a": {"models": ["Qwen/*"], "bodyBytes": 10}}}'

    settings = json.loads(settings_file(FRAME, Keys({"a": ("k",)}), read_tenants(text), 0, "salt"))

    assert settings["ready"] is True
    assert settings["keys"] == {digest("salt", "k"): "a"}
    rest = {"requestsPerMinute": 60, "tokensPerMinute": 0, "concurrentRequests": 256}
    assert settings["tenants"] == {"a": {**rest, "models": ["Qwen/*"], "bodyBytes": 10}}
    assert settings["defaults"] == {**rest, "models": ["*"], "bodyBytes": 1000}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[]", "must be a mapping with the fields defaults and tenants"),
        ('{"tenants": {"a b": {}}}', "tenants has 'a b'"),
        ('{"tenants": {"a": []}}', "tenants.a must be a mapping"),
        ('{"tenants": {"a": {"model": ["*"]}}}', "tenants.a has the field 'model'; it may have models, requests"),
        ('{"tenants": {"a": {"models": "*"}}}', "tenants.a.models must be a list"),
        ('{"tenants": {"a": {"models": [1]}}}', "tenants.a.models has 1"),
        ('{"defaults": {"requestsPerMinute": "60"}}', "tenantDefaults.requestsPerMinute is '60'; it must be a whole"),
        ('{"defaults": {"concurrentRequests": 0}}', "concurrentRequests is 0; it must be a whole number of at least 1"),
        ('{"defaults": {"tokensPerMinute": true}}', "tenantDefaults.tokensPerMinute is True"),
    ],
)
def test_tenants_that_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("[", r"\[").replace("*", r"\*")):
        read_tenants(text)


def test_the_proxy_serves_nobody_before_it_has_keys_and_tenants() -> None:
    def ready(frame: Frame, keys: Keys, tenants: Tenants | None) -> bool:
        is_ready: bool = json.loads(settings_file(frame, keys, tenants, 0, "salt"))["ready"]
        return is_ready

    keys, none = Keys({"a": ("k",)}), Frame(False, 1000, 10_000, 60, ())
    assert ready(FRAME, keys, Tenants())
    assert not ready(FRAME, keys, None)
    assert not ready(FRAME, Keys(), Tenants())
    assert ready(none, Keys(), Tenants())


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({"QWEN_GATEWAY_AUTH": "open"}, "QWEN_GATEWAY_AUTH is 'open'; it must be keys or none"),
        ({"QWEN_GATEWAY_PORT": "http"}, "QWEN_GATEWAY_PORT is 'http'; it must be a whole number from 1 to 65535"),
        ({"QWEN_GATEWAY_CORS_ALLOWED_ORIGINS": "https://a b.c"}, "QWEN_GATEWAY_CORS_ALLOWED_ORIGINS has 'b.c'"),
        ({"QWEN_GATEWAY_CORS_ALLOWED_ORIGINS": "https://a/p"}, "has 'https://a/p'; an origin is a scheme and a host"),
    ],
)
def test_settings_that_are_refused(environ: dict[str, str], sentence: str) -> None:
    with pytest.raises(SettingsError) as caught:
        ProxySettings.from_env(environ)
    assert sentence in str(caught.value)
