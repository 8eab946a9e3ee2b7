"""The loop of the listener: take what is there, one transaction, then acknowledge, then publish."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import zmq

from cf_messaged import intake
from cf_messaged.codec import encode_answer
from cf_messaged.complaints import Complaints
from cf_messaged.config import BadConfig, Config
from cf_messaged.connections import descriptor_of
from cf_messaged.database import Limits, StoreUnavailable
from cf_messaged.endless import Endless
from cf_messaged.enrolment import Desk
from cf_messaged.guard import Guard, NotHeard, Sender
from cf_messaged.intake import Verdict
from cf_messaged.key_log import KeyLog
from cf_messaged.keyring import Keyring
from cf_messaged.metrics import Metrics
from cf_messaged.publishing import Publishing
from cf_messaged.retention import Keep, Sweeper
from cf_messaged.rights import EVERYBODY, Rights
from cf_messaged.sockets import ENROLMENT, EVENTS, REQUEST, SUBSCRIBE, Frames, Role, Socket, Sockets, receive, send
from cf_messaged.store import Store
from cf_messaged.systemd import Notifier
from cf_messaged.times import microseconds, rfc3339
from cf_messaged.view_pool import Answered, Asker, ViewPool
from cf_messaged.view_process import Question, Settings
from cf_messaging.wire import ANSWERED, DUPLICATE, REFUSED, SELF, STORED, Answer, Event

log = logging.getLogger(__name__)

# A transaction as large as this costs some 30 ms, in which nobody is answered; more would hardly be faster.
MAX_BATCH = 1024
MAX_BATCH_BYTES = 8 * 1024 * 1024
# Who says faster than it can be read must not keep a batch open for longer.
MAX_BATCH_S = 0.02
# For which a frame counts, as it takes time too.
FRAME_BYTES = 256
# Messages of one peer, one after the other: libzmq takes from each that has some in turn.
MAX_IN_A_ROW = 64
RETRY_AFTER_S = 10.0
# How often a view that runs is looked at, whether it should be killed.
LOOK_S = 0.5
PAUSE_AFTER_A_BUG_S = 0.1


class Said(NamedTuple):
    """envelope: where the answer goes to; None if nobody waits for one."""

    envelope: Frames | None
    event: Event


class Taken(NamedTuple):
    """A message. last: its last frame, which tells by which key it came. size: in bytes, with what frames count for."""

    role: Role
    frames: Frames
    last: zmq.Frame
    size: int


def now_us() -> int:
    return time.time_ns() // 1000


class Service:
    """Made, it listens; `run` until a signal or `stop`, then `close`."""

    def __init__(self, config: Config, store: Store, load: Callable[[], Config] | None = None) -> None:
        """load: reads the settings again. Raises CannotListen, CannotServe."""
        self.metrics = Metrics()
        self._counters = self.metrics.counters
        self._config, self._load = config, load
        self._store = store
        self._store_lost, self._lost_s = "", 0.0  # why, and when something could not be stored last
        self._complaints = Complaints()
        self._sweeper = Sweeper(store, _of_retention(config))
        self._stopping = self._reloading = False
        self._notifier = Notifier(os.environ)
        self._views = ViewPool(_of_views(config), config.views_at_once, self.metrics)
        keyring = self._keyring = Keyring(config.keys_dir) if config.keys_dir else None
        self._guard = Guard(keyring, config) if keyring else None
        self._key_log = KeyLog(store) if keyring else None
        self._sockets = Sockets(config, keyring)
        self._desk = self._made_desk()
        self._publishing = Publishing(self._sockets.get(SUBSCRIBE), store, self._guard, self.metrics)
        self.endpoints = self._sockets.endpoints
        self._endless = Endless([each for role, each in self._sockets if role in EVENTS], self.endpoints.values())
        if config.metrics_address:
            self.endpoints["metrics"] = self.metrics.serve(*config.metrics_address)
        # A signal that comes just before the poll would else be noticed only after it.
        self._wake, self._waker = socket.socketpair()
        self._polled: list[int] = []
        self._poller = zmq.Poller()

    def _made_desk(self) -> Desk | None:
        socket, pair = self._sockets.get(ENROLMENT), self._sockets.pair
        if not (socket and pair and self._keyring and self._guard and self._key_log):
            return None
        return Desk(socket, pair.public, self._keyring, self._guard, self._key_log, self._config)

    def heed_signals(self) -> None:
        """SIGTERM and SIGINT end `run`, also one that has not begun: call it before anybody is told of the listener.
        SIGHUP reads the settings again.
        """
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def run(self) -> None:
        self._notifier.ready(f"listens on {self.endpoints['request']}")
        while not self._stopping:
            try:
                self._round()
            except zmq.ContextTerminated:
                raise
            except Exception as error:  # noqa: BLE001  # the loop's safety net: who is not answered says it again
                log.error("a bug, please report it: %s: %s", type(error).__name__, error)
                time.sleep(PAUSE_AFTER_A_BUG_S)  # it may come again each round
        self._notifier.stopping()

    def stop(self) -> None:
        self._stopping = True

    def close(self) -> None:
        self._views.close()
        self._sockets.close()
        self.metrics.close()
        self._store.close()
        signal.set_wakeup_fd(-1)
        self._wake.close()
        self._waker.close()

    def _on_signal(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self._reloading = True
        else:
            self._stopping = True

    def _round(self) -> None:
        ready = self._wait()
        if self._wake.fileno() in ready:
            self._wake.recv(4096)
        if self._reloading:
            self._reload()
        self._check_keys()
        self._publishing.hear(ready)
        self._publishing.resend()
        taken = self._take(ready)
        if found := self._endless.check(each.last for each in taken):
            self._counters.refused[intake.ENDLESS] += found
        self._serve(taken)
        self._answer(self._views.serve(ready, now_us()))
        if self._desk:
            self._desk.serve(ready, self._store.id, now_us())
        if self._key_log:
            self._key_log.write()
        self._publishing.publish_news()
        self._sweeper.step(now_us(), len(taken))
        self._notifier.alive()

    # ---- waiting

    def _wait(self) -> dict[object, int]:
        self._watch()
        now_s = time.monotonic()
        waits = [self._notifier.poll_s, self._publishing.poll_s(now_s), self._store.poll_s, self._sweeper.poll_s(now_s)]
        waits += [self._endless.poll_s, LOOK_S if self._views.busy else None]
        if self._desk:
            waits.append(self._desk.visitors.poll_s)
        shortest = min((wait for wait in waits if wait is not None), default=None)
        return dict(self._poller.poll(None if shortest is None else math.ceil(shortest * 1000)))

    def _watch(self) -> None:
        """Sockets stay what they are; the processes of views, and a connection of the store, come and go."""
        files = [self._wake.fileno(), *self._views.files(), *self._store.files()]
        if files == self._polled:
            return
        self._poller = zmq.Poller()
        monitors = [self._desk.visitors.monitor] if self._desk else []
        for each in [*(each for _, each in self._sockets), *monitors]:
            self._poller.register(each, zmq.POLLIN)
        for file in files:
            self._poller.register(file, zmq.POLLIN)
        self._polled = files

    # ---- events

    def _take(self, ready: dict[object, int]) -> list[Taken]:
        """What waits at the sockets where events come; each of them has its share of a batch."""
        waiting = [(role, each) for role, each in self._sockets if each in ready and role in EVENTS]
        taken: list[Taken] = []
        for role, each in waiting:
            messages = _messages(role, each, len(waiting))
            self._counters.received[role.setting] += len(messages)
            taken += messages
        return taken

    def _serve(self, messages: Sequence[Taken]) -> None:
        events: list[Said] = []
        asked: list[tuple[str | int, Said]] = []
        for who, (envelope, said, kind) in self._understood(messages):
            if isinstance(said, Answer):
                self._turn_away(who, envelope, said, kind)
            elif intake.is_about_self(said):
                asked.append((who, Said(envelope, said)))
            elif envelope is not None and intake.is_question(said):
                self._ask(envelope, said)
            else:
                events.append(Said(envelope, said))
        if events:
            self._store_all(events)
        if asked:
            self._tell_of_themselves(asked)

    def _understood(self, messages: Sequence[Taken]) -> Iterator[tuple[str | int, intake.Delivery]]:
        """With who has said it: the node, by its key, or the connection. Nothing of one that is let in no more, or says
        far too much.
        """
        now_s = time.monotonic()
        for message in messages:
            if self._guard is None:
                yield descriptor_of(message.last), self._read(message)
                continue
            try:
                sender = self._guard.sender(message.last, message.size, now_s)
            except NotHeard as rule:
                self._counters.refused[str(rule)] += 1
            else:
                yield sender.name, self._permitted(message, sender, self._guard.rights)

    def _permitted(self, message: Taken, sender: Sender, rights: Rights) -> intake.Delivery:
        """What of it may be said, and now."""
        delivery = intake.permitted(self._read(message), sender.name, rights, self._store.id)
        if sender.put_off:
            return intake.put_off(delivery, self._store.id, sender.put_off, sender.wait_s)
        return delivery

    def _read(self, message: Taken) -> intake.Delivery:
        if message.role.before is None:
            return intake.read(message.frames, self._store.id)
        return intake.read_unanswered(message.frames, message.role.before, self._store.id)

    def _turn_away(self, who: str | int, envelope: Frames | None, answer: Answer, kind: str) -> None:
        if answer.status == REFUSED:
            self._counters.refused[kind] += 1
            self._complaints.say(who, f"refused {answer.id or 'a message without an id'}: {answer.reason}")
        else:
            self._counters.later += 1
            self._counters.lost += envelope is None
            lost = "; what nobody answers is lost" if envelope is None else ""
            self._complaints.say(who, f"put off: {answer.reason}{lost}")
        self._send(envelope, encode_answer(answer))

    def _ask(self, envelope: Frames, said: Event) -> None:
        asker, only = Asker(envelope[0], envelope), None
        if self._guard:
            asker = Asker(said.node, envelope)
            only = None if self._guard.rights.may_ask(said.node, said.name) else said.node
        question = Question(said.id, self._store.id, said.name, said.data, now_us(), only)
        self._answer(self._views.ask(asker, question))

    def _tell_of_themselves(self, asked: Sequence[tuple[str | int, Said]]) -> None:
        reason = self._why_nothing_is_stored()
        for who, (envelope, event) in asked:
            node = who if isinstance(who, str) else None
            rule = self._guard.rights.of(node) if self._guard and node else EVERYBODY
            row = {"node": node, "say": rule.say, "ask": rule.ask, "subscribe": rule.subscribe}
            told = [{**row, "stores": not reason, "reason": reason}]
            moment = rfc3339(now_us())
            answer = Answer(event.id, self._store.id, 0, ANSWERED, view=SELF, rows=told, time=moment)
            self._counters.answered += 1
            self._send(envelope, encode_answer(answer))

    def _why_nothing_is_stored(self) -> str:
        """Empty if something can be. A disk that is full shows only where there is something to store."""
        try:
            self._store.check()
        except StoreUnavailable as error:
            return str(error)
        ago_s = time.monotonic() - self._lost_s
        return self._store_lost and f"the last event, {ago_s:.0f} s ago, could not be stored: {self._store_lost}"

    def _store_all(self, events: Sequence[Said]) -> None:
        received_us, began = now_us(), time.monotonic()
        try:
            verdicts = self._store.add([(event, received_us) for _, event in events])
        except StoreUnavailable as error:
            self._put_off(events, str(error))
            return
        if self._store_lost:
            name, id, lost = self._store.name, self._store.id, self._counters.lost
            log.warning("the store is there again: %s, store %s; lost since the start: %d", name, id, lost)
        self._store_lost = ""
        next_key = self._keyring.next_key() if self._keyring else None
        for (envelope, event), verdict in zip(events, verdicts, strict=True):
            if envelope is not None:
                self._send(envelope, encode_answer(intake.answer(event, self._store.id, verdict, next_key)))
            self._note(event, verdict)
        self._counters.batches += 1
        oldest_us = microseconds(min(event.time for _, event in events))
        self.metrics.committed(len(events), time.monotonic() - began, oldest_us, received_us)

    def _put_off(self, events: Sequence[Said], reason: str) -> None:
        if not self._store_lost:
            log.error("nothing can be stored: %s; what is pushed, published or said by a pair is lost", reason)
        self._store_lost, self._lost_s = reason, time.monotonic()
        self._counters.later += len(events)
        self._counters.lost += sum(envelope is None for envelope, _ in events)
        for envelope, event in events:
            self._send(envelope, encode_answer(intake.later(event, self._store.id, reason, RETRY_AFTER_S)))

    def _note(self, event: Event, verdict: Verdict) -> None:
        if verdict.status == STORED:
            self._counters.stored += 1
        elif verdict.status == DUPLICATE:
            self._counters.duplicates += 1
        elif verdict.status == REFUSED:
            self._counters.refused[verdict.kind or REFUSED] += 1
            self._complaints.say(event.node, f"refused {event.kind} {event.name} of {event.node}: {verdict.reason}")
        if verdict.note:
            self._complaints.say(event.node, verdict.note, logging.INFO)

    def _answer(self, answers: Sequence[Answered]) -> None:
        for envelope, frame in answers:
            self._send(envelope, frame)

    def _send(self, envelope: Frames | None, answer: bytes) -> None:
        """A peer that is gone, or does not read, is not waited for: it would hold up all the others."""
        router = self._sockets.get(REQUEST)
        if envelope is None or router is None:
            return
        try:
            send(router, [*envelope, answer])
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self._counters.dropped += 1

    # ---- keys

    def _check_keys(self) -> None:
        if not (self._keyring and self._guard and self._key_log):
            return
        with suppress(OSError):  # of a folder that is away, which the guard tells
            self._keyring.end_overlaps(now_us(), self._guard.silent_s)
        if self._guard.check():
            self._key_log.let_in(self._guard.names, now_us())
            self._publishing.check()

    # ---- settings

    def _reload(self) -> None:
        self._reloading = False
        self._notifier.reloading()
        try:
            self._settle(self._load() if self._load else self._config)
        except BadConfig as error:
            log.error("the settings stay as they were: %s", error)
        finally:  # systemd waits for it, whatever comes
            self._notifier.ready(f"listens on {self.endpoints['request']}")

    def _settle(self, new: Config) -> None:
        """Takes over what can change while it listens."""
        for name in self._config.unchangeable(new):
            log.warning("%s stays as it was: another one needs a restart", name)  # the store's may hold a password
        has_other_rights = new.rights != self._config.rights
        self._config = replace(new, **{name: getattr(self._config, name) for name in self._config.unchangeable(new)})
        self._store.alive_within_s = self._config.alive_within_s
        self._views.settings = _of_views(self._config)
        self._sweeper.keep = _of_retention(self._config)
        if self._guard:
            self._guard.settle(self._config)
            if self._desk:
                self._desk.settle(self._config)
            if has_other_rights:
                self._publishing.hang_up()
        log.info("the settings are read again")


def _of_views(config: Config) -> Settings:
    given = {"alive_within": config.alive_within_s, "after": config.alive_within_s}
    limits = Limits(config.view_timeout_s, config.view_max_rows, config.view_max_bytes)
    return Settings(config.store, config.views_dir, given, limits)


def _of_retention(config: Config) -> Keep:
    return Keep(config.keep_state_days, config.keep_dynamic_days, config.keep_changes_days)


def _messages(role: Role, source: Socket, shares: int) -> list[Taken]:
    """No more than one of so many shares of a batch; and not much of one who speaks while nobody else has anything to
    say: somebody may at any time.
    """
    most, most_bytes, until_s = MAX_BATCH // shares, MAX_BATCH_BYTES // shares, time.monotonic() + MAX_BATCH_S / shares
    taken: list[Taken] = []
    total = in_a_row = 0
    sender = -1
    while len(taken) < most and total < most_bytes and in_a_row < MAX_IN_A_ROW and time.monotonic() < until_s:
        try:
            frames, last = receive(source)
        except zmq.Again:
            break
        before, sender = sender, descriptor_of(last)
        in_a_row = in_a_row + 1 if sender == before else 1
        taken.append(Taken(role, frames, last, sum(map(len, frames)) + FRAME_BYTES * len(frames)))
        total += taken[-1].size
    return taken
