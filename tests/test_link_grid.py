"""The coordinator's grid when an answer's parts do not come: the others are read meanwhile."""

import time

import pytest
from flwr.app import Error, Message
from flwr.app.message.message import make_message, remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedResponse, PullObjectResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute
from flwr.supercore.run import Run

from common import letters
from server.coordinator import link_grid
from server.coordinator.link_grid import LinkGrid


class FakeRuntime:
    """A link that tells of each answer once, and has the parts of some of them."""

    def __init__(self) -> None:
        self.answers: list[Message] = []
        self.parts: dict[str, bytes] = {}
        self.token = "t"  # noqa: S105 - nobody's
        self.run = Run.create_empty(7)

    def runtime(self, token: str) -> "FakeRuntime":
        return self

    def answer(self, question: Message, *, is_whole: bool) -> Message:
        reply = Message(letters.letter({"report": {"of": question.metadata.message_id}}, {}), reply_to=question)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self.answers.append(reply)
        if is_whole:
            self.complete(reply)
        return reply

    def complete(self, reply: Message) -> None:
        with no_object_id_recompute():
            self.parts |= {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}

    def PullMessages(self, request):
        told = [one for one in self.answers if one.metadata.reply_to_message_id in request.message_ids]
        self.answers = [one for one in self.answers if one not in told]
        with no_object_id_recompute():
            return PullAppMessagesResponse(
                messages_list=[message_to_proto(remove_content_from_message(one)) for one in told],
                message_object_trees=[get_object_tree(one) for one in told],
            )

    def PullObject(self, request):
        part = self.parts.get(request.object_id, b"")
        return PullObjectResponse(object_found=True, object_available=bool(part), object_content=part)

    def ConfirmMessageReceived(self, request):
        return ConfirmMessageReceivedResponse()


def question(node: int) -> Message:
    metadata = Metadata(7, f"{node}" * 64, 0, node, "", "1", time.time(), 600.0, "train")
    return make_message(metadata, content=letters.letter({"order": {"round": 1}}, {}))


@pytest.fixture
def runtime():
    return FakeRuntime()


@pytest.fixture
def grid(runtime):
    return LinkGrid(runtime, runtime)  # type: ignore[arg-type]


def asked_in(messages: list[Message]) -> list[str]:
    return [message.metadata.reply_to_message_id for message in messages]


def test_nobody_waits_for_the_parts_of_anothers_answer(grid, runtime):
    """One whose sender was cut off is read when its parts are there, though the link told of it only once."""
    first, second = question(1), question(2)
    cut_off = runtime.answer(first, is_whole=False)
    runtime.answer(second, is_whole=True)
    names = [first.metadata.message_id, second.metadata.message_id]
    assert asked_in(grid.pull_messages(names)) == names[1:]
    assert grid.pull_messages(names[:1]) == []
    runtime.complete(cut_off)
    (answer,) = grid.pull_messages(names[:1])
    assert letters.opened(answer.content)[0] == {"report": {"of": names[0]}}


def test_an_answer_whose_parts_never_come_is_given_up(grid, runtime, monkeypatch):
    """After a time it is an error of who was asked."""
    asked = question(1)
    runtime.answer(asked, is_whole=False)
    monkeypatch.setattr(link_grid, "ANSWER_S", 0.0)
    (answer,) = grid.pull_messages([asked.metadata.message_id])
    assert answer.has_error()
    assert isinstance(answer.error, Error)
    assert answer.error.reason == "no-answer"
