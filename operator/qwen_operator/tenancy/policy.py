"""The rules as the variables and validations of ValidatingAdmissionPolicies. The chart adds the lists.

`python -m qwen_operator.tenancy.policy > charts/qwen-operator/files/tenancy-rules.json` writes the chart's copy anew.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from qwen_operator.tenancy import models, operator_policy
from qwen_operator.tenancy.lists import BUILT_IN
from qwen_operator.tenancy.rules import RULES, Rule, Shape, may_allow


def document() -> dict[str, Any]:
    """`lists`: the built-in lists by setting. `tenants` and `operator`: the two policies' variables and validations."""
    parts = [
        {"name": name, "expression": expression}
        for part in ("pod", "engine")
        for name, expression in (
            (part, f"object.spec.?{part}.orValue({{}})"),
            (_before(part), f"oldObject != null ? oldObject.spec.?{part}.orValue({{}}) : {{}}"),
        )
    ]
    return {
        "lists": {str(setting): list(entries) for setting, entries in BUILT_IN.items()},
        "tenants": {
            "variables": [
                *models.VARIABLES,
                *parts,
                *({"name": _name(rule), "expression": refused(rule)} for rule in RULES),
            ],
            "validations": [*models.validations(), *(_validation(rule) for rule in RULES)],
        },
        "operator": operator_policy.document(),
    }


def refused(rule: Rule) -> str:
    """CEL for the texts of the entries that are not allowed and were not there before."""
    present, before = _value(rule, rule.path[0]), _value(rule, _before(rule.path[0]))
    holds = rule.cel.replace("VALUE", f"{present}[item]")
    if rule.shape is Shape.MAP:
        stays = f"(item in {before} && {before}[item] == {present}[item])"
    elif rule.shape is Shape.WORDS:
        stays = f"{present} == {before}"
    else:
        stays = f"item in {before}"
    return f"{present}.filter(item, !({stays}) && !({holds})).map(item, {rule.shown})"


def _before(part: str) -> str:
    return f"old{part.capitalize()}"


def _value(rule: Rule, part: str) -> str:
    field = "variables." + part + "".join(f".?{name}" for name in rule.path[1:])
    if rule.shape is Shape.FIELD:
        return f"({field}.hasValue() ? [{field}.value()] : [])"
    return f"{field}.orValue({'{}' if rule.shape is Shape.MAP else '[]'})"


def _name(rule: Rule) -> str:
    first, *others = rule.path
    return "refused" + "".join(name[0].upper() + name[1:] for name in (first, *others))


def _validation(rule: Rule) -> dict[str, str]:
    end = f": not allowed here: {rule.right}{may_allow(rule.setting)}"
    entries = f"variables.{_name(rule)}"
    return {
        "expression": f"size({entries}) == 0",
        "message": f"{rule.name}{end}",
        "messageExpression": f"{json.dumps(f'{rule.name}: ')} + {entries}.join(', ') + {json.dumps(end)}",
    }


def text() -> str:
    """The file of the chart."""
    return json.dumps(document(), indent=1, ensure_ascii=True) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
