"""Who set spec.replicas, as the API server notes it."""

from __future__ import annotations

from typing import Any

import pytest

from qwen_operator.api.writers import kept_fields, replicas_writer


def _entry(manager: str, time: str, *, replicas: bool, **more: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"f:spec": {"f:model": {}} | ({"f:replicas": {}} if replicas else {})}
    return {
        "manager": manager,
        "operation": "Update",
        "time": time,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    } | more


APPLIED = _entry("argocd", "2026-11-24T09:00:00Z", replicas=False)
SCALED = _entry("kubectl", "2026-11-24T10:00:00Z", replicas=True, subresource="scale")
STATUS = {"manager": "qwen-operator-status", "fieldsV1": {"f:status": {"f:replicas": {}}}}
CASES: dict[str, tuple[Any, tuple[str, str] | None]] = {
    "kubectl scale": ([APPLIED, SCALED, STATUS], ("kubectl", "2026-11-24T10:00:00Z")),
    "nobody": ([APPLIED, STATUS], None),
    "no managedFields": (None, None),
    "the later of two owners": (
        [_entry("a", "2026-11-24T11:00:00Z", replicas=True), SCALED],
        ("a", "2026-11-24T11:00:00Z"),
    ),
    "an entry without time or name": ([{"fieldsV1": {"f:spec": {"f:replicas": {}}}}], ("unknown", "")),
    "nonsense": ([7, {"fieldsV1": 7}, {"fieldsV1": {"f:spec": 7}}], None),
}


@pytest.mark.parametrize(("fields", "writer"), CASES.values(), ids=CASES.keys())
def test_the_writer_of_the_number(fields: Any, writer: tuple[str, str] | None) -> None:
    assert replicas_writer({"managedFields": fields}) == writer


def test_what_is_kept_is_enough_and_says_nothing_else() -> None:
    kept = kept_fields({"managedFields": [APPLIED, SCALED, STATUS]})
    assert replicas_writer({"managedFields": kept}) == ("kubectl", "2026-11-24T10:00:00Z")
    assert kept == [
        {
            "manager": "kubectl",
            "operation": "Update",
            "subresource": "scale",
            "time": "2026-11-24T10:00:00Z",
            "fieldsV1": {"f:spec": {"f:replicas": {}}},
        }
    ]
