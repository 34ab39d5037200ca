"""The message about objects of other owners."""

from __future__ import annotations

from qwen_operator.actions.blocked import MOST_NAMED, ForeignObject, foreign_message
from qwen_operator.actions.types import Kind

CHAT = {"metadata": {"name": "chat", "namespace": "team", "uid": "u"}}


def test_a_long_list_is_cut_and_the_command_names_what_the_message_names() -> None:
    pods = [ForeignObject(Kind.POD, f"chat-{number}", former=True) for number in range(MOST_NAMED + 2)]
    message = foreign_message(pods, CHAT)
    assert "the Pod chat-7 and 2 more already exist and do not belong" in message
    assert "To adopt the first 8: kubectl annotate --overwrite -n team pod/chat-0 pod/chat-1 " in message
    assert " pod/chat-7 qwen-operator.dev/owner-uid=u. Or delete them" in message
    assert "chat-8" not in message


def test_one_object_that_can_be_adopted_beside_one_that_cannot() -> None:
    both = [ForeignObject(Kind.POD, "a"), ForeignObject(Kind.CONTROLLER_REVISION, "b", former=True)]
    assert foreign_message(both, CHAT) == (
        "the Pod a already exists and does not belong to this QwenDeployment, so the operator leaves it alone: delete "
        "it, or give this QwenDeployment another name. An earlier QwenDeployment of this name made the "
        "ControllerRevision b. To adopt it: kubectl annotate --overwrite -n team controllerrevision/b "
        "qwen-operator.dev/owner-uid=u. Or delete it"
    )
