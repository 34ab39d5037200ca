"""What the user and the operator's ServiceAccount may do, as the API server answers reviews."""

from collections.abc import Iterator

from qwen_operator.doctor import release
from qwen_operator.doctor.types import ClusterFacts, Finding, Mark, Right

NAME = "rights"


def check(facts: ClusterFacts) -> Iterator[Finding]:
    watched = len(release.watched(facts.installation.operator.first))
    for account in dict.fromkeys(right.account for right in facts.rights):
        rights = [right for right in facts.rights if right.account == account]
        checked = len({right.namespace for right in rights if right.namespace})
        part = f" in the {checked} of {watched} namespaces that were checked" if account and checked < watched else ""
        yield from _of(account, rights, part)


def _of(account: str, rights: list[Right], part: str) -> Iterator[Finding]:
    """`part`: of which namespaces the rights are, if these are not all."""
    who = f"the ServiceAccount {account.removeprefix('system:serviceaccount:').replace(':', '/')}" if account else "you"
    unknown = sorted({right.problem for right in rights if right.problem})
    missing = [right for right in rights if not right.allowed and not right.problem]
    for problem in unknown:
        yield Finding(Mark.UNKNOWN, NAME, f"rights of {who} not checked: {problem}")
    if missing and account:
        yield Finding(
            Mark.BAD,
            NAME,
            f"{who} may not {_texts(missing)}{part}: upgrade the chart with rbac.create, or bind these rights to it",
        )
    elif missing:
        yield Finding(
            Mark.WARNING, NAME, f"you may not {_texts(missing)}: ask an administrator for a role with these rights"
        )
    elif not unknown:
        has = (
            "has all rights that this version needs" if account else "may do what installing and using the chart needs"
        )
        yield Finding(Mark.OK, NAME, f"{who} {has}{part}")


def _texts(rights: list[Right]) -> str:
    """One phrase for each resource and namespace, at most six."""
    verbs: dict[tuple[str, str], list[str]] = {}
    for right in rights:
        verbs.setdefault((right.resource, right.namespace), []).append(right.verb)
    phrases = [
        f"{'/'.join(names)} {resource} {f'in {namespace}' if namespace else 'in the cluster'}"
        for (resource, namespace), names in verbs.items()
    ]
    more = f" and {len(phrases) - 6} more" if len(phrases) > 6 else ""
    return ", ".join(phrases[:6]) + more
