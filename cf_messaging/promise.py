"""Keeps messages: promises: of each one outcome, which is a result, classes and one log line."""

from __future__ import annotations

import os
import sys
from time import monotonic

from cfengine import PromiseModule, ValidationError

from . import files
from .attributes import is_dry_run, read_promise, shown
from .outcomes import Failure, Outcome, Reason, kept, not_kept, only_warned, repaired, told, worst
from .patterns import ANSWER, ASK, HEAR, PAIR, SAY, Conversation, listens

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from typing import Any

    from .attributes import Promise
    from .conversations import Exchanged
    from .exchange import Exchange
    from .information import Information
    from .wire import Message

VERSION = "0.1.0"
# <workdir>/state: this file is in <workdir>/modules/promises/cf_messaging.
_STATE_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "state")


class MessagesPromise(PromiseModule):
    """Keeps messages: promises; holds what lives as long as the agent run, the exchange with its open sockets."""

    handles_action_policy = True

    def __init__(self) -> None:
        super().__init__("messages_promise", VERSION)
        self._exchange: Exchange | None = None
        self._information: Information | None = None
        self._validated: tuple[str, dict[str, Any], Promise] | None = None
        # The stock SDK in place of ours cannot tell the agent that this module knows what a dry run is.
        self._on_stock_sdk = not hasattr(PromiseModule, "handles_action_policy")
        self._dry_run_lost = self._on_stock_sdk

    def validate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> None:
        if self._dry_run_lost:
            self._dry_run_lost = False
            self.log_info(
                "messages: runs on another cfengine.py than its own: in dry runs its promises are not evaluated"
            )
        try:
            self._validated = promiser, attributes, read_promise(promiser, attributes)
        except ValueError as error:
            raise ValidationError(str(error)) from None

    def evaluate_promise(
        self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]
    ) -> tuple[str, list[str]]:
        started = monotonic()
        if self._on_stock_sdk:
            self._log_level = "verbose"  # its copies of before 2024 keep back the info line that cf-agent insists on
        try:
            promise = self._promise(promiser, attributes)
            if promise.curve and not promise.curve.key_file:
                promise.curve = promise.curve._replace(key_file=own_key_file(promise.state_dir))
            promise.node = promise.node or os.uname().nodename
            if promise.information or promise.view:
                outcome = self._inform(promise, _place(metadata), started)
            else:
                outcome = self._keep(promise, started)
        except Failure as failure:
            outcome = not_kept(failure)
        except OSError as error:  # whatever this machine lacks at the moment
            outcome = not_kept(Failure(Reason.LOCAL, f"this node: {error}"))
        place = _place(metadata) if outcome.result == "not_kept" else ""
        log = getattr(self, f"log_{outcome.level}")
        log(f"messages '{promiser}'{place and f' ({place})'}: {outcome.text}")
        # The agent makes class names of these, but would take what is before a colon for a namespace.
        prefix = promiser.replace(":", "_")
        suffixes = [] if is_dry_run(attributes) else outcome.suffixes
        return outcome.result, [f"{prefix}_{suffix}" for suffix in suffixes]

    def _promise(self, promiser: str, attributes: dict[str, Any]) -> Promise:
        """The promise to evaluate: as a rule the one that was just validated, which need not be read again."""
        validated, self._validated = self._validated, None
        if validated and validated[:2] == (promiser, attributes):
            return validated[2]
        try:
            return read_promise(promiser, attributes)
        except ValueError as error:
            raise Failure(Reason.LOCAL, str(error)) from None

    def _keep(self, promise: Promise, started: float) -> Outcome:
        if promise.payload == []:
            return kept("there is nothing to say")
        if promise.dry_run:
            return only_warned(f"{_VERBS[promise.pattern.conversation]} {', '.join(promise.endpoint)}")
        talk = _conversation(promise)
        if promise.file:
            files.check_writable(promise.file)
        deadline = started + promise.timeout
        done = self._opened().converse(talk, deadline)
        try:
            return _concluded(promise, talk, done, deadline)
        except Failure as failure:
            if failure.reason is Reason.TIMED_OUT:
                raise Failure(failure.reason, f"{failure} (timeout {promise.timeout:g} s)") from failure
            raise

    def _inform(self, promise: Promise, place: str, started: float) -> Outcome:
        """Keep a promise of information, or for a view."""
        if self._information is None:
            from .information import Information

            self._information = Information(self._converse, self._note, _STATE_DIR)
        if promise.view:
            return self._information.view(promise, started)
        return self._information.say(promise, _value(promise), place, started)

    def _converse(self, talk: Conversation, deadline: float) -> Exchanged:
        return self._opened().converse(talk, deadline)

    def _note(self, level: str, text: str) -> None:
        getattr(self, f"log_{level}")(text)

    def _opened(self) -> Exchange:
        """The exchange, which imports zmq: a run in which nothing crosses the network does without."""
        if self._exchange is None:
            files.check_descriptors()
            try:
                from .exchange import Exchange
            except ImportError as error:
                raise without_zmq(error) from error
            self._exchange = Exchange(self._note)
        return self._exchange

    def protocol_terminate(self) -> str:
        for lost in self.close():
            self.log_warning(f"messages: {lost}")
        return "success"

    def close(self) -> list[str]:
        """Close the sockets, however the run ends; returns what was lost by it, in words."""
        if self._information:
            self._information.close()
        exchange, self._exchange = self._exchange, None
        return exchange.close() if exchange else []


def _place(metadata: dict[str, Any]) -> str:
    return f"{metadata['filename']}:{metadata['line_number']}" if {"filename", "line_number"} <= metadata.keys() else ""


def _value(promise: Promise) -> Any:
    """The one value of information."""
    if promise.payload_file:
        return files.as_value(files.read_payload(promise.payload_file))
    return [] if promise.value == ["cf_null"] else promise.value


_VERBS = {ASK: "ask", ANSWER: "answer at", SAY: "say something to", HEAR: "listen to", PAIR: "talk with"}


def _conversation(promise: Promise) -> Conversation:
    payloads = [files.read_payload(promise.payload_file)] if promise.payload_file else promise.payload or []
    return Conversation(
        promise.pattern,
        promise.endpoint,
        promise.bind,
        payloads,
        promise.topic,
        _answers_wanted(promise, payloads),
        promise.retries,
        promise.subscribers,
        promise.curve,
    )


def own_key_file(state_dir: str | None) -> str:
    """Where the key of this node is, if policy does not say."""
    return os.path.normpath(os.path.join(state_dir or _STATE_DIR, "messages", "node.key"))


def without_zmq(error: ImportError) -> Failure:
    """Why pyzmq is of no use."""
    if isinstance(error, ModuleNotFoundError):
        detail = f"{error}: install Debian's python3-zmq, elsewhere python3-pyzmq, for {sys.executable}"
        return Failure(Reason.LOCAL, detail)
    return Failure(Reason.LOCAL, f"zmq cannot be loaded: {error}")  # something that it needs is not there


def _answers_wanted(promise: Promise, payloads: list[bytes]) -> int | None:
    if promise.pattern.conversation == PAIR and payloads:
        return len(payloads) if promise.file or promise.expect else 0
    return 0 if promise.pattern.conversation == SAY else promise.count or None


def _concluded(promise: Promise, talk: Conversation, done: Exchanged, deadline: float) -> Outcome:
    """The outcome of a conversation; writes the file. Raises Failure if the promise is not kept."""
    if done.failures and not (listens(talk) and done.received):
        raise worst(done.failures)
    content = _checked(promise, talk, done, deadline) if promise.expect or promise.file else b""
    changed = promise.file is not None and files.keep(promise.file, content)
    if done.failures:  # what a listening pattern did receive is written all the same
        raise worst(done.failures)
    text, suffixes = told(talk, done.endpoint, done.said, len(done.received))
    if promise.file:
        suffixes.append("received")
        return (
            repaired(f"{text}, {promise.file} replaced", suffixes) if changed else kept(f"{text}, as before", suffixes)
        )
    is_check = talk.pattern.conversation == ASK and promise.expect
    return repaired(text, suffixes) if done.said and not is_check else kept(text, suffixes)


def _checked(promise: Promise, talk: Conversation, done: Exchanged, deadline: float) -> bytes:
    """What was received, as it is to be in the file. Raises Failure if it is not what is expected."""
    from . import alarm

    expect, what = promise.expect, ""
    try:
        if expect:
            what = f"to match what came with '{expect.pattern}' (does it repeat a repetition?)"
            alarm.done_by(deadline, lambda: _check_expected(expect, done.received, done.endpoint))
        what = f"to write what came as {promise.format}"
        return alarm.done_by(deadline, lambda: _content(promise, talk, done)) if promise.file else b""
    except alarm.Overdue:
        raise Failure(Reason.TIMED_OUT, f"{what} takes too long", done.endpoint) from None


def _check_expected(expect: re.Pattern[str], messages: list[Message], endpoint: str) -> None:
    for message in messages:
        text = message.payload.decode("utf-8", "surrogateescape")
        if not expect.fullmatch(text):
            raise Failure(Reason.MISMATCHED, f"{shown(text)}, where '{expect.pattern}' is expected", endpoint)


def _content(promise: Promise, talk: Conversation, done: Exchanged) -> bytes:
    if promise.format == "text":
        wanted = len(talk.payloads) if talk.pattern.conversation == ASK else talk.answers
        return files.as_text(done.received, wanted)
    try:
        return files.as_json(done.received)
    except ValueError as error:
        raise Failure(Reason.INVALID_REPLY, f"{error}; {promise.file} stays as it was", done.endpoint) from error


def run() -> int:
    """Serve cf-agent until the end of its run; returns the exit status."""
    module = MessagesPromise()
    try:
        module.start()
    except SystemExit as end:
        if isinstance(end.code, str):
            sys.stderr.write(f"{end.code}\n")
        return int(bool(end.code))
    finally:
        module.close()
