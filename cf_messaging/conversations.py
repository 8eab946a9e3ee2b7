"""The conversations: ask, answer, say and hear, each over one link, within a deadline."""

from __future__ import annotations

from time import monotonic

from .link import CLOSED, READ, WRITE
from .outcomes import Failure, Reason
from .patterns import ANSWER, ASK, listens
from .wire import MAX_RECEIVED_BYTES, MESSAGE_OVERHEAD_BYTES, Message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .link import Link
    from .patterns import Conversation


class Exchanged:
    """What came of a conversation."""

    __slots__ = ("endpoint", "failures", "messages", "said", "size_bytes")

    def __init__(self, asked: int) -> None:
        self.endpoint = ""  # where it took place at last
        self.failures: list[Failure] = []
        self.messages: list[Message | None] = [None] * asked  # of answers, in payload order; else as they came
        self.size_bytes = 0
        self.said = 0  # messages that were handed over or answered

    @property
    def received(self) -> list[Message]:
        return [message for message in self.messages if message is not None]

    def count(self, message: Message) -> Message:
        """The message, if there is room for it in memory."""
        self.size_bytes += MESSAGE_OVERHEAD_BYTES + len(message.payload) + len(message.topic)
        if self.size_bytes > MAX_RECEIVED_BYTES:
            detail = f"more than MAX_RECEIVED_BYTES, {MAX_RECEIVED_BYTES} bytes, for one promise"
            raise Failure(Reason.INVALID_REPLY, detail, self.endpoint)
        return message


def hold(talk: Conversation, link: Link, until: float, deadline: float, patient: bool, done: Exchanged) -> None:
    """Hold the conversation over this link and add to done. Raises Failure if it could not be completed.

    until: when to give up on a peer that is not there or does not answer; deadline: when to end in any case;
    patient: whether to wait for a peer that is not there yet. Both are of time.monotonic().
    """
    if link.connects or not listens(talk):
        link.await_peer(until, patient, or_message=listens(talk))
    if talk.pattern.conversation == ASK:
        _ask(link, talk, until, done)
    elif talk.pattern.conversation == ANSWER:
        _answer(link, talk, deadline if link.peers else until, done)
    elif listens(talk):
        _hear(link, talk, deadline if link.peers else until, done, link.owed)
    else:
        _say(link, talk, until, deadline, done)


def _ask(link: Link, talk: Conversation, until: float, done: Exchanged) -> None:
    if talk.pattern.socket == "REQ":
        _ask_in_turn(link, talk, until, done)
    else:
        _ask_at_once(link, talk, until, done)
    done.said = len(done.messages)


def _ask_in_turn(link: Link, talk: Conversation, until: float, done: Exchanged) -> None:
    losses = link.losses
    for index, payload in enumerate(talk.payloads):
        if done.messages[index] is not None:
            continue
        link.send([payload], until)
        frames = link.receive_at_once(until)
        while frames is None:
            _await_answer(link, READ, losses, until, done)
            frames = link.try_receive()
        done.messages[index] = done.count(Message(_single(frames, link), b""))


def _ask_at_once(link: Link, talk: Conversation, until: float, done: Exchanged) -> None:
    """All payloads in flight together. Of several, each carries its number, which tells whose answer an answer is."""
    while monotonic() < until and link.try_receive():
        pass  # second answers to earlier questions
    losses = link.losses
    envelopes = _envelopes(link, [index for index, message in enumerate(done.messages) if message is None], talk)
    waiting = {tuple(envelope): index for index, envelope in envelopes.items()}
    unsent = [[*envelope, talk.payloads[index]] for index, envelope in reversed(envelopes.items())]
    while waiting:
        while unsent and link.try_send(unsent[-1]):
            unsent.pop()
        frames = link.try_receive() if monotonic() < until else None
        if frames is None:
            _await_answer(link, READ | WRITE if unsent else READ, losses, until, done)
        else:
            _settle(link, frames, waiting, done)


def _envelopes(link: Link, indexes: list[int], talk: Conversation) -> dict[int, list[bytes]]:
    if len(talk.payloads) == 1:
        return {0: [b""]}
    first = link.serial
    link.serial += len(indexes)
    return {index: [b"%d" % number, b""] for number, index in enumerate(indexes, start=first)}


def _settle(link: Link, frames: list[bytes], waiting: dict[tuple[bytes, ...], int], done: Exchanged) -> None:
    message = done.count(Message(frames[-1], b""))
    index = waiting.pop(tuple(frames[:-1]), None)
    if index is not None:
        done.messages[index] = message
    elif not _is_second(link, frames):
        detail = "an answer without the envelope of its request: the peer must return all frames up to the empty one"
        raise Failure(Reason.INVALID_REPLY, detail, link.endpoint)


def _is_second(link: Link, frames: list[bytes]) -> bool:
    """Whether this answers, once more, a request that was asked on this socket: the first answer counts."""
    return len(frames) == 3 and not frames[1] and frames[0].isdigit() and int(frames[0][:12]) < link.serial


def _await_answer(link: Link, flags: int, losses: int, until: float, done: Exchanged) -> None:
    """Return when it is worth looking for an answer again. Raises Failure when it is not."""
    if link.losses != losses and link.connects:
        raise _unanswered(Reason.UNREACHABLE, f"the connection ended before the answer: {CLOSED}", link, done)
    if monotonic() >= until or not link.wait(flags, until):  # also when what comes is no answer, and keeps coming
        raise _unanswered(Reason.TIMED_OUT, "connected, but no answer in time", link, done)


def _unanswered(reason: Reason, detail: str, link: Link, done: Exchanged) -> Failure:
    asked, answered = len(done.messages), len(done.received)
    return Failure(reason, f"{detail} ({answered} of {asked} answered)" if asked > 1 else detail, link.endpoint)


def _answer(link: Link, talk: Conversation, until: float, done: Exchanged) -> None:
    while talk.answers is None or done.said < talk.answers:
        frames = link.receive(until)
        if frames is None:
            break
        envelope, body = _opened(frames) if talk.pattern.socket == "ROUTER" else ([], frames)
        if link.try_send([*envelope, talk.payloads[min(done.said, len(talk.payloads) - 1)]]):
            done.said += 1
        _keep(link, body, b"", done)
    _check_count(link, talk, done.said, "requests were answered")


def _opened(frames: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """The envelope, up to the empty delimiter, and the body; a DEALER that sends none has only its routing id."""
    end = frames.index(b"", 1) + 1 if b"" in frames[1:-1] else 1
    return frames[:end], frames[end:]


def _hear(link: Link, talk: Conversation, until: float, done: Exchanged, late: int) -> None:
    """late: how many answers to what earlier promises said come first, which must not be taken for messages of now."""
    while talk.answers is None or len(done.messages) < talk.answers:
        frames = link.receive(until)
        if frames is None:
            break
        link.owed = max(0, link.owed - 1)
        if late:
            late -= 1
            continue
        topic = frames.pop(0) if talk.pattern.socket == "SUB" and len(frames) > 1 else b""
        _keep(link, frames, topic, done)
    of_topic = f" of topic '{talk.topic.decode('utf-8', 'replace')}'" if talk.topic else ""
    behind = f" behind {late} late answers to earlier promises" if late else ""
    _check_count(link, talk, len(done.messages), f"messages{of_topic} came{behind}")


def _keep(link: Link, body: list[bytes], topic: bytes, done: Exchanged) -> None:
    """Add what was received; a message that is not understood is a failure, but does not stop the others."""
    try:
        done.messages.append(done.count(Message(_single(body, link), topic)))
    except Failure as failure:
        done.failures.append(failure)
        if done.size_bytes > MAX_RECEIVED_BYTES:
            raise


def _single(body: list[bytes], link: Link) -> bytes:
    if len(body) != 1:
        raise Failure(Reason.INVALID_REPLY, f"a message of {len(body)} frames, where one is understood", link.endpoint)
    return body[0]


def _check_count(link: Link, talk: Conversation, count: int, what: str) -> None:
    if talk.answers is None or count >= talk.answers:
        return
    if not (count or link.peers):
        raise link.absence()
    raise Failure(Reason.TIMED_OUT, f"{count} of {talk.answers} {what} in time", link.endpoint)


def _say(link: Link, talk: Conversation, until: float, deadline: float, done: Exchanged) -> None:
    if talk.pattern.socket == "XPUB":
        _await_subscribers(link, talk, until)
    losses, late = link.losses, link.owed
    for payload in talk.payloads:
        if not link.send([talk.topic, payload] if talk.pattern.socket == "XPUB" else [payload], deadline):
            detail = f"{done.said} of {len(talk.payloads)} messages were handed over, then the peer took no more"
            raise Failure(Reason.TIMED_OUT, detail, link.endpoint)
        done.said += 1
        link.owed += bool(talk.answers)
    link.observe(deadline)
    if link.losses != losses and link.connects:
        detail = "the peer closed the connection while messages were handed over: some may be lost"
        raise Failure(Reason.UNREACHABLE, detail, link.endpoint)
    if talk.answers:
        _hear(link, talk, deadline, done, late)


def _await_subscribers(link: Link, talk: Conversation, until: float) -> None:
    while True:
        link.take_subscriptions()
        link.observe(until)
        matching = link.subscribers(talk.topic)
        if matching >= talk.subscribers:
            return
        if not link.wait(READ, until):
            topic = talk.topic.decode("utf-8", "replace")
            detail = f"{matching} of {talk.subscribers} subscribers to topic '{topic}' came in time"
            raise Failure(Reason.TIMED_OUT, detail, link.endpoint)
