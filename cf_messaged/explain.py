"""cf-messaged explain NODE: at which stage what a node says ends, as far as its hub can see. It stores nothing."""

from __future__ import annotations

import fcntl
import socket
import struct
import time
from collections.abc import Callable, Container, Mapping, Sequence
from typing import NamedTuple

import click

from cf_messaged import rights, views
from cf_messaged.complaints import in_words
from cf_messaged.config import ENDPOINTS, Config
from cf_messaged.database import Limits, StoreUnavailable
from cf_messaged.keyring import ACCEPTED, FOLDERS, REJECTED, REVOKED, UNKNOWN, WAITING, Held, Keyring, held_in, listed
from cf_messaged.names import OFF
from cf_messaged.shown import one_line
from cf_messaged.store import heard
from cf_messaging import wire

OK, SKIPPED, FAILED = "ok", "skipped", "failed"
TIMEOUT_S = 2.0  # for each socket, on this machine
MAX_ROWS = 3  # of what happened to keys
_ON_NODE = "on the node `messages_promise.py explain ENDPOINT` tells how far it comes"
_SIOCGIFADDR = 0x8915


class Trouble(Exception):
    """Why a stage fails, and what mends it; a line each."""

    def __init__(self, text: str, mend: str) -> None:
        super().__init__(text)
        self.mend = mend


class Skipped(Exception):
    """Why there is nothing to look at."""


class Case:
    """A node, and what is known of its keys. held: by state. changes: the last that happened, the newest first; blind:
    why that cannot be told.
    """

    def __init__(self, config: Config, node: str) -> None:
        self.config, self.node = config, node
        self.held: Mapping[str, Sequence[Held]] = dict.fromkeys(FOLDERS, ())
        self.changes: Sequence[views.Row] = ()
        self.blind = ""

    def look_up(self) -> None:
        """What happened to its keys. Where no listener runs, whoever reads could leave files of SQLite behind."""
        view = views.load("key_changes", None)
        given = views.values(view, {"node": self.node, "limit": MAX_ROWS}, {}, time.time_ns() // 1000)
        try:
            self.changes = views.rows(self.config.store, view, given, Limits())
        except (StoreUnavailable, views.Refused) as error:
            self.blind = str(error)

    @property
    def directory(self) -> str:
        """Of keys. Raises Skipped."""
        if self.config.keys_dir is None:
            raise Skipped("there is no keys_dir: whoever reaches an endpoint may say and ask everything")
        return self.config.keys_dir


# ---- the stages: each tells what it found, or raises Skipped, Trouble, StoreUnavailable, or OSError


def _listens(case: Case) -> str:
    wanted = "CURVE" if case.config.keys_dir else "NULL"
    told = []
    for setting in (each for each in ENDPOINTS if case.config.listens(each)):
        endpoint = getattr(case.config, setting)
        if endpoint.endswith(":*"):
            told.append(f"{setting} {endpoint}, a port that only its log tells")
            continue
        _check(f"{setting} {endpoint}", endpoint, wanted)
        told.append(f"{setting} {endpoint}")
    return f"{', '.join(told)}: {wanted}"


def _check(what: str, endpoint: str, wanted: str) -> None:
    """Raises Trouble, unless a listener is there that has this mechanism."""
    try:
        greeted = wire.read_greeting(_greeting(endpoint))
    except OSError as error:
        raise Trouble(f"{what}: {error.strerror or error}", _START) from None
    if greeted is None:
        raise Trouble(f"{what}: accepts the connection, but is no ZeroMQ, or hangs", _OTHER)
    _, mechanism = greeted
    if mechanism != wanted:
        raise Trouble(f"{what}: wants {mechanism}, and by its settings {wanted}", _OTHER)


_START = "`systemctl start cf-messaged`, and `journalctl -u cf-messaged` tells why it ended"
_OTHER = "`ss -tlnp` tells which program listens there; after a change of these settings the listener needs a restart"


def _greeting(endpoint: str) -> bytes:
    """What somebody there says first. Raises OSError."""
    said, until_s = b"", time.monotonic() + TIMEOUT_S
    with _connected(endpoint) as probe:
        probe.sendall(wire.SIGNATURE + b"\3\0")
        while len(said) < wire.GREETING_BYTES and time.monotonic() < until_s:
            probe.settimeout(max(0.001, until_s - time.monotonic()))
            try:
                more = probe.recv(wire.GREETING_BYTES - len(said))
            except OSError:
                break
            if not more:
                break
            said += more
    return said


def _connected(endpoint: str) -> socket.socket:
    """Raises OSError."""
    transport, _, place = endpoint.partition("://")
    if transport == "ipc":
        probe = socket.socket(socket.AF_UNIX)
        probe.settimeout(TIMEOUT_S)
        probe.connect(place.replace("@", "\0", 1) if place.startswith("@") else place)
        return probe
    host, _, port = place.rpartition(":")
    return socket.create_connection((_reached_at(host.strip("[]")), int(port)), TIMEOUT_S)


def _reached_at(host: str) -> str:
    """Of what is bound."""
    if host in ("*", "0.0.0.0", "::"):
        return "::1" if host == "::" else "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            told = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", host.encode()[:15]))
        return socket.inet_ntoa(told[20:24])
    except OSError:  # the name of no interface
        return host


def _keys(case: Case) -> str:
    directory = case.directory
    case.look_up()
    claimed = {row["key"] for row in case.changes}  # a rejected key has no name of its own
    case.held = {
        state: [held for held in held_in(directory, state).values() if _is_of(held, case.node, claimed)]
        for state in FOLDERS
    }
    told = "; ".join(f"{state}: {_told(held)}" for state in FOLDERS for held in case.held[state])
    if case.held[ACCEPTED]:
        return told
    for state in (WAITING, REVOKED, REJECTED):
        for held in case.held[state]:
            raise Trouble(told, _OF_STATES[state].format(key=held.key.hex(), node=case.node, host_key=held.host_key))
    strangers = sum(row["state"] == UNKNOWN for row in listed(directory))
    raise Skipped(f"none is of {case.node}; {strangers} that knocked have no name: `cf-messaged keys list`")


_OF_STATES = {
    WAITING: "`cf-messaged keys accept {key} {node}`, if it may come in",
    REVOKED: "a revoked key stays out: remove state/messages/node.key on the node, for another; a host that was revoked"
    " may come in again once its files are gone from `revoked` of keys_dir",
    REJECTED: "`cf-messaged keys accept {key} {node}`, if it may come in after all",
}


def _is_of(held: Held, node: str, claimed: Container[str]) -> bool:
    return held.node == node or (held.node == REJECTED and held.key.hex() in claimed)


def _told(held: Held) -> str:
    since = f" since {held.since[:19]}Z" if held.since else ""
    return f"{held.key.hex()}{since}" + (f" ({held.reason})" if held.reason else "")


def _enrolled(case: Case) -> str:
    keyring = Keyring(case.directory)
    let_in, known = keyring.names(), case.held[ACCEPTED]
    for held in known:
        if held.key in let_in:
            by = f"host key {held.host_key}, which is trusted" if held.host_key else "hand"
            return f"let in by {by}{_history(case)}"
    for held in known:
        what, why = _out(held, keyring)
        raise Trouble(f"{what} {why}{_history(case)}", _mend(why))
    if case.config.enrol == OFF:
        raise Trouble(f"`enrol` is off, and no key was accepted by hand{_history(case)}", _BY_HAND)
    if case.blind:
        raise Trouble(f"nobody is let in as {case.node}, and why not cannot be read: {case.blind}", _BY_HAND)
    if not case.changes:
        raise Trouble(f"nobody has claimed to be {case.node}", f"{_ON_NODE}; or `cf-messaged keys list`, and `accept`")
    last = case.changes[0]
    raise Trouble(f"nobody is let in as {case.node}: {last['what']}{_history(case)}", _mend(last["reason"]))


def _out(held: Held, keyring: Keyring) -> tuple[str, str]:
    """What keeps out a key that was accepted, and why."""
    if keyring.is_revoked(held.key):
        return "this key", "was revoked"
    if keyring.is_rejected(held.key):
        return "this key", "was rejected"
    return f"host key {held.host_key}", "was revoked" if keyring.is_barred(held.host_key) else "is trusted no more"


_BY_HAND = "`cf-messaged keys list` tells which keys knock, `cf-messaged keys accept KEY NODE` lets one in"
_MENDS = {
    "trusted": "bootstrap that host to this hub; examples/trusted_keys.cf copies its key to `trusted` of keys_dir",
    "was revoked": _OF_STATES[REVOKED],
    "was rejected": "`cf-messaged keys list` tells where it is; remove its file from `rejected` of keys_dir",
    "`listed`": "put its name and its host key in `listed` of the settings, and reload",
    "another machine": "give the copied machine a host key of its own: remove its ppkeys/localhost.*, and run cf-key",
    "": f"as it says; {_ON_NODE}",
}


def _mend(reason: str) -> str:
    return next(mend for words, mend in _MENDS.items() if words in reason)


def _history(case: Case) -> str:
    """A line each."""
    return "".join(
        f"\n{row['time'][:19]}Z {row['what']}: key {row['key']}"
        + (f", from {row['address']}" if row["address"] else "")
        + (f": {row['reason']}" if row["reason"] else "")
        for row in case.changes
    )


def _allowed(case: Case) -> str:
    if case.config.keys_dir is None:
        raise Skipped("there are no keys, so everybody may say and ask everything")
    rules = rights.read(case.config.rights)
    rule = rights.Rights(rules).of(case.node)
    which = "no rule names it, so as for all others"
    if rule in rules:
        which = f"rule {rules.index(rule) + 1} of [[rights]], for {' '.join(rule.nodes)}"
    parts = {"say": rule.say, "see all rows of": rule.ask, "subscribe to": rule.subscribe}
    told = f"{which}: may " + ", ".join(f"{may} {' '.join(what) or 'nothing'}" for may, what in parts.items())
    if not rule.say:
        raise Trouble(told, "give it something in `say` of that rule, and reload")
    return told


def _stored(case: Case) -> str:
    found = heard(case.config.store, case.node)
    if found is None:
        return f"it is there, and has nothing of {case.node}: {_ON_NODE}"
    age_s = max(0, time.time_ns() // 1000 - found.last_seen) // 1_000_000
    return f"it is there: {case.node} was last heard {age_s} s ago, with {found.events} events in all"


# ---- one after the other


class Stage(NamedTuple):
    """mend: of what the stage itself does not know."""

    name: str
    look: Callable[[Case], str]
    mend: str = ""


_OF_KEYS = "run this as the user of the listener, or as root; `cf-messaged run` makes the folders of keys_dir"
STAGES = (
    Stage("listener", _listens),
    Stage("key", _keys, _OF_KEYS),
    Stage("enrolment", _enrolled, _OF_KEYS),
    Stage("rights", _allowed),
    Stage("store", _stored, "as it says; nodes keep what they say until it is there"),
)


def _passes(stage: Stage, case: Case) -> bool:
    began_s, state, mend = time.monotonic(), OK, ""
    try:
        text = stage.look(case)
    except Skipped as skipped:
        state, text = SKIPPED, str(skipped)
    except Trouble as trouble:
        state, text, mend = FAILED, str(trouble), trouble.mend
    except StoreUnavailable as error:
        state, text, mend = FAILED, str(error), stage.mend
    except OSError as error:
        state, text, mend = FAILED, in_words(error), stage.mend
    first, *more = text.split("\n")
    click.echo(one_line(f"{stage.name:<11}{state:<8}{1000 * (time.monotonic() - began_s):>8.1f} ms  {first}"))
    for line in more:
        click.echo(one_line(f"{'':<32}{line}"))
    if mend:
        click.echo(one_line(f"what to do: {mend}"))
    return state != FAILED


@click.command()
@click.argument("node")
@click.option("--config", "config_path", metavar="FILE", help="Settings, in TOML.")
@click.option("--store", metavar="URL", help="Where everything is kept, if not as in the settings.")
@click.pass_context
def explain(context: click.Context, node: str, config_path: str | None, store: str | None) -> None:
    """Tell at which stage what NODE says ends, as far as this hub can see; nothing is stored by it."""
    from cf_messaged.cli import settings

    case = Case(settings(config_path, store=store), node)
    if not all(_passes(stage, case) for stage in STAGES):
        context.exit(1)
