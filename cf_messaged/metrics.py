"""What the listener counts and measures, and the page of it that Prometheus asks for."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from socketserver import TCPServer
from threading import Thread
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.exposition import ThreadingWSGIServer
from prometheus_client.metrics_core import CounterMetricFamily

from cf_messaged import __version__
from cf_messaged.intake import CLONED, ENDLESS, FLOODING, FORBIDDEN, MALFORMED, NAMED, PROMISED, REVOKED
from cf_messaging.wire import VIEW

log = logging.getLogger(__name__)

# Who connects and says nothing, or does not read, holds a thread and a descriptor, which nodes need too.
SCRAPE_TIMEOUT_S = 10.0

# Told as 0 before the first: Prometheus cannot see a counter rise that was not there.
SOCKETS = ("request", "push", "publish", "pair")
REASONS = (MALFORMED, CLONED, PROMISED, NAMED, REVOKED, FORBIDDEN, FLOODING, ENDLESS, VIEW)

# From a disk that acknowledges at once to one that hangs.
COMMIT_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
# Up to the largest batch that the listener takes.
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Around the ten seconds in which a view is cut unless the operator wants something else.
VIEW_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
# On the way; since the last agent runs, of five minutes; hours and days of a network that was away; the largest expire.
QUEUE_BUCKETS_S = (1, 10, 60, 300, 600, 1800, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400)


class CannotServe(OSError):
    """One line: which address, and why."""


# ---- what is counted


@dataclass(slots=True)
class Counters:
    """Since the start. received: by socket. refused: by kind. lost: those of `later` whose node could not be told so.
    dropped: answers that could not be sent; the node asks again. published: messages sent to subscribers.
    """

    received: Counter[str] = field(default_factory=Counter)
    stored: int = 0
    duplicates: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    later: int = 0
    lost: int = 0
    answered: int = 0
    dropped: int = 0
    published: int = 0
    batches: int = 0

    def __str__(self) -> str:
        refused = ", ".join(f"{count} {kind}" for kind, count in sorted(self.refused.items()))
        return (
            f"received {self.received.total()}, stored {self.stored}, duplicates {self.duplicates},"
            f" refused {self.refused.total()}{f' ({refused})' if refused else ''}, later {self.later},"
            f" lost {self.lost}, views answered {self.answered}, answers dropped {self.dropped}, batches {self.batches}"
        )


# Field of Counters: its name for Prometheus, and its help.
_SINGLE = {
    "stored": ("stored", "Events stored."),
    "duplicates": ("duplicates", "Events that had been stored before."),
    "later": ("later", "Events and questions put off: the node was told to come later, where it is answered."),
    "lost": ("lost", "Events put off whose node is not answered: pushed, published or said by a pair."),
    "answered": ("views_answered", "Questions answered with a view."),
    "dropped": ("answers_dropped", "Answers that could not be sent, as the node was gone or did not read."),
    "published": ("published", "Messages sent to subscribers."),
    "batches": ("batches", "Transactions that stored events."),
}


class _Counted:
    """Reads the counters when somebody asks, so that counting costs the listener nothing but an addition."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Metric]:
        now = self._counters
        yield _labelled("received", "Messages taken, by the socket they came to.", "socket", SOCKETS, now.received)
        yield _labelled("refused", "Messages refused, by reason.", "reason", REASONS, now.refused)
        for name, (told_as, about) in _SINGLE.items():
            yield CounterMetricFamily(f"cf_messaged_{told_as}", about, getattr(now, name))


def _labelled(name: str, about: str, label: str, known: Iterable[str], counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"cf_messaged_{name}", about, labels=[label])
    # In one step of the interpreter, since the listener may add a key in the middle of a loop over it.
    copied = dict(counts)
    for value in dict.fromkeys([*known, *copied]):
        family.add_metric([value], copied.get(value, 0))
    return family


class Metrics:
    """Of one listener. Histograms are for what happens once a batch or a view: an observation costs microseconds."""

    def __init__(self) -> None:
        # They would be the time of the start, once more for each histogram.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client gives it no types
        self.counters = Counters()
        # With support for collectors without names, a scrape of ?name[]=... still finds the counters.
        self.registry = CollectorRegistry(support_collectors_without_names=True)
        self.registry.register(_Counted(self.counters))
        ProcessCollector(registry=self.registry)
        Info("cf_messaged", "The listener that runs.", registry=self.registry).info({"version": __version__})
        self.commit_seconds = self._histogram("commit_seconds", "Transactions that stored events.", COMMIT_BUCKETS_S)
        self.batch_events = self._histogram("batch_events", "Events in one transaction.", BATCH_BUCKETS)
        self.view_seconds = self._histogram("view_seconds", "Views, from question to answer.", VIEW_BUCKETS_S)
        self.queue_age_seconds = self._histogram(
            "queue_age_seconds", "Age of the oldest event of a batch on arrival, by the node's clock.", QUEUE_BUCKETS_S
        )
        self.subscriptions = self._gauge("subscriptions", "Subscriptions that there are.")
        self._server: _Server | None = None

    def committed(self, events: int, took_s: float, oldest_us: int, received_us: int) -> None:
        """To be called once a batch. oldest_us: the least `time` of its events; a clock that is ahead counts as 0."""
        self.batch_events.observe(events)
        self.commit_seconds.observe(took_s)
        self.queue_age_seconds.observe(max(0, received_us - oldest_us) / 1_000_000)

    def serve(self, host: str, port: int) -> str:
        """In a thread, until `close`. Returns HOST:PORT as it is bound, port 0 resolved. Raises CannotServe."""
        try:
            server = _Server(host, port)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no name of a host"
            raise CannotServe(f"cannot serve metrics on {_told(host, port)}: {reason}") from None
        server.set_app(make_wsgi_app(self.registry))
        self._server = server
        Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        return _told(server.server_name, server.server_port)

    def close(self) -> None:
        """Scrapes that are on their way are not waited for."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = None

    def _histogram(self, name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"cf_messaged_{name}", about, registry=self.registry, buckets=buckets)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"cf_messaged_{name}", about, registry=self.registry)


# ---- the page


def read_address(text: str) -> tuple[str, int]:
    """Host, without brackets, and port. Raises ValueError."""
    parts = re.fullmatch(r"(?:([A-Za-z0-9._-]{1,253})|\[([0-9A-Fa-f:.]+)\]):([0-9]{1,5})", text)
    if not parts or int(parts[3]) > 65535 or (parts[2] and not _is_ipv6(parts[2])):
        raise ValueError(f"'{text:.100}' is no address to listen on: allowed are ADDRESS:PORT, NAME:PORT, [V6]:PORT")
    return parts[1] or parts[2], int(parts[3])


def _is_ipv6(text: str) -> bool:
    try:
        return bool(ipaddress.IPv6Address(text))
    except ValueError:
        return False


def _told(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _Handler(WSGIRequestHandler):
    timeout = SCRAPE_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """A scrape is no news."""


class _Server(ThreadingWSGIServer):
    """The server of prometheus_client, as start_http_server() makes it, but for what would hurt a listener."""

    def __init__(self, host: str, port: int) -> None:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        self.address_family = family
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Asks no DNS for the name of this host: the start would wait for a DNS server that is away."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def shutdown(self) -> None:
        """At once: the thread looks each half second whether it should end, unless its socket wakes it."""
        self.socket.shutdown(socket.SHUT_RDWR)
        super().shutdown()

    def handle_error(self, request: object, client_address: object) -> None:
        """Who goes away in the middle, or says nothing, is no traceback in the log of the listener."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            log.warning("metrics for %s: %s: %s", client_address, type(error).__name__, error)
