"""What a cf-messaged has answered, or why that is no answer."""

from __future__ import annotations

from . import wire
from .outcomes import Failure, Reason


def decoded(payload: bytes, id: str, endpoint: str, allowed: tuple[str, ...]) -> wire.Answer:
    """The answer in a message from this endpoint to what was said with this id. Raises Failure."""
    try:
        answer = wire.decode_answer(payload)
    except wire.Malformed as error:
        raise Failure(Reason.INVALID_REPLY, f"{error}: is this a cf-messaged?", endpoint) from None
    unread = answer.status == wire.REFUSED and not answer.id  # it could not even read whose event it was
    if answer.id != id and not unread:
        raise Failure(Reason.INVALID_REPLY, f"an answer to '{answer.id:.80}', which was not asked", endpoint)
    if answer.status not in allowed:
        raise Failure(Reason.INVALID_REPLY, f"the answer '{answer.status}', which fits no such question", endpoint)
    return answer
