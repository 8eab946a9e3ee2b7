"""At which stage a message of this node to a cf-messaged ends, for an operator: `messages_promise.py explain ENDPOINT`.

It goes the way of a message as far as that leads, and stores nothing, here or there. One trace is left: a listener
notes who knocks with a key that it does not let in, as it does of each promise. No agent run imports this file.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import namedtuple

from . import keys, wire
from .addresses import greeting, parse, resolve, why_unreachable
from .answers import decoded
from .attributes import ATTRIBUTES, shown
from .keys import BadKey
from .outcomes import Failure, Reason
from .patterns import PATTERNS, Conversation
from .promise import own_key_file, without_zmq

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from .attributes import Curve
    from .keys import Pair
    from .link import Link
    from .wire import Answer

OK, SKIPPED, FAILED = "ok", "skipped", "failed"
_ON_HUB = "on the hub `cf-messaged explain NODE` tells more"


class Trouble(Exception):
    """Why a stage fails, and what mends it; a line each."""

    def __init__(self, text: str, mend: str) -> None:
        super().__init__(text)
        self.mend = mend


class Skipped(Exception):
    """Why there is nothing to look at."""


class Case:
    """What is to be explained, and what the stages have found. curve: with the path of this node's key, or None.
    is_named: whether `node` is what policy says, or only the name of this host. deadline: of time.monotonic().
    """

    addresses: Sequence[str]
    address: str  # where somebody accepts connections
    mechanism: str  # that is wanted there
    server_key: bytes  # that the listener has
    row: dict[str, Any]  # what the listener tells of this node

    def __init__(self, endpoint: str, curve: Curve | None, node: str | None, timeout: float) -> None:
        self.endpoint = endpoint
        self.curve = curve._replace(key_file=curve.key_file or own_key_file(None)) if curve else None
        self.node, self.is_named = node or os.uname().nodename, node is not None
        self.deadline = time.monotonic() + timeout
        self.pair: Pair | None = None
        self._link: Link | None = None

    def until(self, parts: int) -> float:
        """When the first of so many parts of what is left of the time is over."""
        now = time.monotonic()
        return now + max(0.0, self.deadline - now) / parts

    def talk(self, payloads: list[bytes]) -> Conversation:
        curve = self.curve._replace(server_key=(self.server_key,)) if self.curve else None
        return Conversation(
            PATTERNS["async_request"], (self.endpoint,), False, payloads, b"", 1, 0, 1, curve, self.node
        )

    def link(self) -> Link:
        """Through which the listener has let this node in. Raises Failure."""
        import zmq

        from .link import Link, Security

        if self._link is None:
            security = Security(self.pair, self.server_key, b"") if self.curve else None
            self._link = Link(zmq.Context(), self.talk([]), self.endpoint, self.address, self.deadline, security)
            self._link.await_peer(self.deadline, patient=False)
        return self._link


# ---- the stages: each tells what it found, or raises Skipped, Trouble, or Failure, which the table below mends


def _resolved(case: Case) -> str:
    host = parse(case.endpoint).host
    case.addresses = resolve(case.endpoint, case.deadline)
    if case.addresses == [case.endpoint]:
        is_path = case.endpoint.startswith("ipc:")
        raise Skipped(f"{host} is {'a path of this machine' if is_path else 'an address'}: there is no name to resolve")
    return f"{host} is {', '.join(parse(address).host for address in case.addresses)}"


def _connected(case: Case) -> str:
    address, refused = _accepting(case, case.addresses)
    if not address:
        raise Trouble(refused, _mend(refused, _OF_CONNECTIONS))
    case.address = address
    kind = ", of a Unix socket in place of TCP" if address.startswith("ipc:") else ""
    return f"{address} accepts connections{kind}" + (f" ({refused})" if refused else "")


def _accepting(case: Case, addresses: Sequence[str]) -> tuple[str, str]:
    """The first that accepts connections, or nothing, and why those before it do not."""
    refused: list[str] = []
    for index, address in enumerate(addresses):
        why = why_unreachable(address, case.until(len(addresses) - index))
        if not why:
            return address, "; ".join(refused)
        refused.append(f"{address}: {why}")
    return "", "; ".join(refused)


_OF_CONNECTIONS = {
    "connection refused": f"look whether the listener runs, and on this port; {_ON_HUB}",
    "no such file": f"look whether the listener runs on this machine, and on this path; {_ON_HUB}",
    "permission denied": "run this as the user of cf-agent",
    "": "look at routing and firewalls on the way, and whether the hub is up: packets vanish",
}


def _greeted(case: Case) -> str:
    said = greeting(case.address, case.deadline)
    greeted = wire.read_greeting(said)
    if greeted:
        version, case.mechanism = greeted
        return f"ZMTP {version}"
    if said.startswith(wire.SIGNATURE) and said[10:11] < b"\3":
        raise Trouble("it speaks a ZMTP before 3", "the peer needs libzmq 4.0 or newer, of 2013")
    if said:
        raise Trouble(f"it is no ZeroMQ: it says {shown(said)}", _OTHER_PROGRAM)
    how = "says nothing" if time.monotonic() >= case.deadline else "hangs up"
    raise Trouble(f"it accepts the connection and {how}: no ZeroMQ, or it hangs", _OTHER_PROGRAM)


_OTHER_PROGRAM = (
    "look which program listens there, `ss -tlnp` on the hub: the port in `endpoint`, or the program, is wrong"
)


def _secured(case: Case) -> str:
    theirs, ours = case.mechanism, "CURVE" if case.curve else "NULL"
    if theirs == ours:
        return f"{ours}, on both sides"
    raise Trouble(f"it wants {theirs}, this node wants {ours}", _OF_MECHANISMS.get((theirs, ours), _NO_CF_MESSAGED))


_NO_CF_MESSAGED = "look which program listens there: a cf-messaged has CURVE, or NULL without keys"
_OF_MECHANISMS = {
    ("CURVE", "NULL"): "give the promise `curve`, with this listener's `server_key`, and this command --curve",
    ("NULL", "CURVE"): "give the listener keys, `keys_dir` in its settings, and restart it",
}


def _shown_key(case: Case) -> str:
    from .handshake import why_not

    told: list[str] = []
    known = keys.server_keys(_keyed(case).server_key)
    for index, key in enumerate(known):
        why = why_not(case.address, key, case.until(len(known) - index))
        if not why:
            case.server_key = key
            return f"the listener has {key.hex()}"
        told.append(f"its key is not {key.hex()}: {why}")
    raise Trouble("; ".join(told), "`cf-messaged keys show` on the hub tells its key: that must be in `server_key`")


def _keyed(case: Case) -> Curve:
    """Raises Skipped."""
    if case.curve is None:
        raise Skipped("without --curve there are no keys")
    return case.curve


def _let_in(case: Case) -> str:
    import zmq

    from .link import NotLetIn

    curve = _keyed(case)
    if not os.path.lexists(curve.key_file):
        unknown = f"this node has no key yet, its first promise makes {curve.key_file}"
        raise _of_claim(case, curve, keys.new_pair(zmq.curve_keypair), unknown, _ACCEPT_LATER)
    pair = case.pair = keys.own_pair(curve.key_file, zmq.curve_keypair)
    key = pair.public.hex()
    try:
        case.link()
    except NotLetIn:
        unknown, accept = f"the listener does not let in this node's key, {key}", _ACCEPT % f"{key} {case.node}"
        raise _of_claim(case, curve, pair, unknown, accept) from None
    except Failure as failure:
        text = str(failure)
        if _ENDS in text:  # of what it says about that, the key is known to be right
            text = f"{case.endpoint} {_ENDS}, though it has the right key: a socket of a kind that does not fit"
        raise Trouble(text, _mend(text, _OF_HANDSHAKES)) from None
    return f"the listener lets in this node's key, {key}"


_ENDS = "ends CURVE's handshake"
_OF_HANDSHAKES = {
    "ZAP status 300": "wait a minute: it has let in enough for now, see `node_handshakes_a_minute` in its settings",
    "does not fit": "explain the endpoint of `request` in the listener's settings: its others take other sockets",
    "": f"as it says; {_ON_HUB}",
}
_ACCEPT = "on the hub `cf-messaged keys accept %s`, if it may come in"
_ACCEPT_LATER = "run its policy once, then on the hub `cf-messaged keys list`, and `accept` its key if it may come in"


def _of_claim(case: Case, curve: Curve, pair: Pair, unknown: str, accept: str) -> Trouble:
    """What would come of enrolling this node by this key, which is not known. accept: how an operator lets it in."""
    from .enrolment import claim, endpoint_of
    from .exchange import Exchange

    office = endpoint_of(case.endpoint, curve)
    if not office:
        return Trouble(f"{unknown}; and policy enrols it nowhere", accept)
    try:
        address, refused = _accepting(case, resolve(office, case.deadline))
        if not address:
            return Trouble(f"{unknown}; and nobody enrols at {office}: {refused}", f"{_OFFICE}; or {accept}")
        exchange = Exchange(pairs={curve.key_file: pair})
        answer = claim(exchange.converse, office, case.talk([]), pair, case.deadline, wire.CHECK)
    except Failure as failure:
        return Trouble(f"{unknown}; {failure}", _mend(str(failure), _of_claims(curve, accept)))
    if answer.status == wire.WAITS:
        return Trouble(f"{unknown}; enrolled at {office}, it would wait for an operator: {answer.reason}", accept)
    return Trouble(
        f"{unknown}; it would be enrolled at {office}", "nothing: the next promise to this listener enrols it"
    )


_OFFICE = "look whether it enrols there: `enrolment` and `enrol` in its settings, firewalls on the way"


def _of_claims(curve: Curve, accept: str) -> dict[str, str]:
    return {
        "is not trusted": "bootstrap this host; on the hub examples/trusted_keys.cf copies its key to keys_dir/trusted",
        "CURVE key was revoked": f"remove {curve.key_file}: the next promise makes another key",
        "was revoked": "on the hub remove its file from keys_dir/revoked, if this host may come in again",
        "cannot enrol": "mend this host's CFEngine key, by which it says who it is",
        "does not enrol": f"as it says; {_ON_HUB}",
        "": f"{_OFFICE}; or {accept}",
    }


def _permitted(case: Case) -> str:
    case.row = _row(_asked(case))
    known, rights = case.row["node"], _rights(case.row)
    if known and known != case.node and case.is_named:
        mend = f"promises of this node need node => '{known}', or its key that name on the hub"
        raise Trouble(f"by its key it is {known}, not {case.node}", mend)
    name = f"known as {known}" if known else "known by no name, as there are no keys"
    if known and known != case.node:
        name += f" (where this host calls itself {case.node}: its promises need node => '{known}')"
    if not case.row["say"]:
        raise Trouble(f"{name}; {rights}", f"give it rights: `[[rights]]` in the listener's settings; {_ON_HUB}")
    return f"{name}; {rights}"


def _asked(case: Case) -> Answer:
    """Raises Failure."""
    from .conversations import Exchanged, hold

    id, moment = os.urandom(16).hex(), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    question = wire.encode_event(wire.Event(id, wire.VIEW, case.node, wire.SELF, moment, {}))
    done = Exchanged(1)
    hold(case.talk([question]), case.link(), case.deadline, case.deadline, False, done)
    answer = decoded(done.received[0].payload, id, case.endpoint, (wire.ANSWERED, wire.REFUSED, wire.LATER))
    if answer.status != wire.ANSWERED:
        raise Failure(Reason.REFUSED, answer.reason, case.endpoint)
    return answer


_RIGHTS = {"say": "say", "ask": "see all rows of", "subscribe": "subscribe to"}


def _row(answer: Answer) -> dict[str, Any]:
    """What the listener told, and the id of its store. Raises Failure."""
    row = {"node": None, **(answer.rows[0] if answer.rows else {}), "store": answer.store}
    texts = [row["node"] or "", row.get("reason")]
    for name in _RIGHTS:
        texts += row[name] if isinstance(row.get(name), list) else [None]
    if not (all(isinstance(text, str) for text in texts) and isinstance(row.get("stores"), bool)):
        raise Failure(Reason.INVALID_REPLY, f"it answers {shown(answer.rows)}: is this a cf-messaged?")
    return row


def _rights(row: dict[str, Any]) -> str:
    return "may " + ", ".join(f"{may} {' '.join(row[name]) or 'nothing'}" for name, may in _RIGHTS.items())


def _stored(case: Case) -> str:
    if case.row["stores"]:
        return f"the listener can store; its store is {case.row['store']}"
    raise Trouble(f"the listener cannot store: {case.row['reason']}", f"as it says; what nodes say waits; {_ON_HUB}")


# ---- one after the other

# mend: of what the stage itself does not know.
Stage = namedtuple("Stage", "name look mend")
STAGES = (
    Stage("name", _resolved, "look at the name in `endpoint`, /etc/hosts and DNS"),
    Stage("TCP", _connected, ""),
    Stage("ZMTP", _greeted, ""),
    Stage("mechanism", _secured, ""),
    Stage("key", _shown_key, "put the listener's certificate there: `cf-messaged keys export` on the hub writes it"),
    Stage("enrolment", _let_in, f"as it says; {_ON_HUB}"),
    Stage(
        "rights",
        _permitted,
        "look whether this is `request` of the listener, its log, and whether it is as new as this",
    ),
    Stage("store", _stored, ""),
)


def _mend(text: str, mends: dict[str, str]) -> str:
    return next(mend for words, mend in mends.items() if words in text)


def _passes(stage: Stage, case: Case) -> bool:
    began, state, mend = time.monotonic(), OK, ""
    try:
        text = stage.look(case)
    except Skipped as skipped:
        state, text = SKIPPED, str(skipped)
    except Trouble as trouble:
        state, text, mend = FAILED, str(trouble), trouble.mend
    except (Failure, BadKey) as failure:
        state, text, mend = FAILED, str(failure), stage.mend
    except ImportError as error:
        state, text, mend = FAILED, str(without_zmq(error)), "install it"
    except OSError as error:
        state, text, mend = FAILED, f"this node: {error}", "look at this node first"
    _tell(f"{stage.name:<11}{state:<8}{1000 * (time.monotonic() - began):>8.1f} ms  {text}")
    if mend:
        _tell(f"what to do: {mend}")
    return state != FAILED


def _tell(line: str) -> None:
    """What others said moves no cursor."""
    print("".join(char if char.isprintable() else ascii(char)[1:-1] for char in line), flush=True)


# ---- the command line


def _reading(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """For argparse, which tells no reason of a ValueError."""

    def checked(text: str) -> Any:
        try:
            return read(text)
        except (OSError, ValueError, BadKey) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _endpoint(text: str) -> str:
    if parse(text).host == "*":
        raise ValueError("the host '*' is for who binds")
    return text


def _curve(path: str) -> Curve:
    """From the object of policy as JSON, or of a certificate, which is the listener's."""
    text = keys.contents(path).decode("utf-8", "replace")
    is_object = text.lstrip().startswith("{")
    curve: Curve = ATTRIBUTES["curve"].read(text if is_object else {"server_key": os.path.abspath(path)})
    if curve.server_key is None:
        raise ValueError("it needs 'server_key': this is for who connects")
    if not is_object:
        keys.public_keys(path)
    return curve


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="messages_promise.py explain",
        description="Tell at which stage a message of this node to a cf-messaged ends. Nothing is stored by it.",
    )
    add = parser.add_argument
    add("endpoint", type=_reading(_endpoint), metavar="ENDPOINT", help="of `request` of the listener, tcp://HUB:5309")
    add("--curve", type=_reading(_curve), metavar="FILE", help="the object of `curve` as JSON, or a certificate")
    add("--node", type=_reading(ATTRIBUTES["node"].read), metavar="NAME", help="what policy says in `node`")
    add("--timeout", type=_reading(ATTRIBUTES["timeout"].read), metavar="S", default="5", help="seconds in all; 5")
    return parser


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0 if all is well."""
    options = _parser().parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal need not know UTF-8
    try:
        case = Case(options.endpoint, options.curve, options.node, options.timeout)
        return int(not all(_passes(stage, case) for stage in STAGES))
    except (BrokenPipeError, KeyboardInterrupt):
        return 130
