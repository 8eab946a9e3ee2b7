"""What the listener counts and measures, as Prometheus sees it: real scrapes of a real page."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from http.client import HTTPMessage
from itertools import pairwise
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from cf_messaged import __version__, metrics
from cf_messaged.metrics import CannotServe, Counters, Metrics, read_address
from cf_messaged.times import rfc3339
from cf_messaging.wire import ANSWERED, REFUSED, Event
from listener import TELLS, Listener, Node, Teller, event
from peers import Socket, scaled
from test_cfengine import wait_for
from test_exchange import in_background

Samples = dict[tuple[str, str], float]  # by name and the value of the only label, if there is one

COUNTERS = {
    "cf_messaged_stored_total": "stored",
    "cf_messaged_duplicates_total": "duplicates",
    "cf_messaged_later_total": "later",
    "cf_messaged_lost_total": "lost",
    "cf_messaged_views_answered_total": "answered",
    "cf_messaged_answers_dropped_total": "dropped",
    "cf_messaged_published_total": "published",
    "cf_messaged_batches_total": "batches",
}


@pytest.fixture
def served() -> Iterator[Metrics]:
    """Metrics that are closed with the test."""
    served = Metrics()
    yield served
    served.close()


def fetch(address: str, query: str = "", method: str = "GET", **headers: str) -> tuple[HTTPMessage, bytes]:
    request = Request(f"http://{address}/metrics{query}", method=method, headers=headers)
    with urlopen(request, timeout=scaled(60)) as response:
        return response.headers, response.read()


def scrape(address: str, query: str = "") -> Samples:
    _, body = fetch(address, query)
    families = text_string_to_metric_families(body.decode())
    return {(one.name, "".join(one.labels.values())): one.value for family in families for one in family.samples}


def connect(address: str) -> socket.socket:
    return socket.create_connection(read_address(address), timeout=scaled(60))


# ---- what is counted


def test_counters_in_words() -> None:
    """The last line of a listener: totals, and what was refused by kind."""
    counters = Counters(stored=3, duplicates=1, later=4, answered=5, dropped=6, published=9, batches=2)
    counters.received.update(request=6, push=2)
    assert str(counters) == (
        "received 8, stored 3, duplicates 1, refused 0, later 4, lost 0, views answered 5, answers dropped 6, batches 2"
    )
    counters.refused.update(promised=1, cloned=2)
    assert "duplicates 1, refused 3 (2 cloned, 1 promised), later 4," in str(counters)


def test_counters_start_at_nothing_of_their_own() -> None:
    """Two listeners in one process do not share what they count."""
    Counters().received["push"] += 1
    assert str(Counters()).startswith("received 0, stored 0,")
    assert Metrics().registry is not Metrics().registry


# ---- what is told


def test_a_scrape_tells_every_counter_as_it_is_now(served: Metrics) -> None:
    """Each under its own name, at the moment of the scrape."""
    address = served.serve("127.0.0.1", 0)
    assert {name: scrape(address)[name, ""] for name in COUNTERS} == dict.fromkeys(COUNTERS, 0)
    for number, field in enumerate(COUNTERS.values(), 1):
        setattr(served.counters, field, number)
    found = scrape(address)
    assert [found[name, ""] for name in COUNTERS] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_scrape_tells_sockets_and_reasons(served: Metrics) -> None:
    """By label; those that are known from the start are there as 0, others once they were counted."""
    address = served.serve("127.0.0.1", 0)
    before = scrape(address)
    for label in ("request", "push", "publish", "pair"):
        assert before["cf_messaged_received_total", label] == 0
    for label in ("malformed", "cloned", "promised", "view"):
        assert before["cf_messaged_refused_total", label] == 0
    served.counters.received["push"] += 7
    served.counters.refused["cloned"] += 1
    served.counters.refused["something else"] += 2
    after = scrape(address)
    assert [after["cf_messaged_received_total", label] for label in ("push", "request")] == [7, 0]
    assert [after["cf_messaged_refused_total", label] for label in ("cloned", "something else")] == [1, 2]
    assert ("cf_messaged_refused_total", "something else") not in before


def test_a_scrape_tells_what_a_batch_was_like(served: Metrics) -> None:
    """Its size, its time, and how old its oldest event was; a node whose clock is ahead counts as 0."""
    address = served.serve("127.0.0.1", 0)
    served.committed(events=256, took_s=0.02, oldest_us=1_000_000, received_us=401_000_000)
    served.committed(events=1, took_s=30, oldest_us=9_000_000, received_us=1_000_000)
    found = scrape(address)
    sums = {name: found[f"cf_messaged_{name}_sum", ""] for name in ("batch_events", "commit_seconds")}
    assert sums == {"batch_events": 257, "commit_seconds": 30.02}
    assert found["cf_messaged_queue_age_seconds_sum", ""] == 400
    assert [found["cf_messaged_queue_age_seconds_bucket", le] for le in ("1.0", "300.0", "600.0")] == [1, 1, 2]
    assert [found["cf_messaged_batch_events_bucket", le] for le in ("1.0", "128.0", "256.0")] == [1, 1, 2]
    assert [found["cf_messaged_commit_seconds_bucket", le] for le in ("0.01", "0.025", "10.0", "+Inf")] == [0, 1, 1, 2]


def test_a_scrape_tells_views_and_peers(served: Metrics) -> None:
    """How long a view took; how many subscriptions there are."""
    address = served.serve("127.0.0.1", 0)
    served.view_seconds.observe(3)
    served.subscriptions.set(4)
    found = scrape(address)
    assert [found["cf_messaged_view_seconds_bucket", le] for le in ("2.5", "5.0")] == [0, 1]
    assert found["cf_messaged_subscriptions", ""] == 4


def test_a_scrape_tells_of_the_process_and_of_nothing_else(served: Metrics) -> None:
    """The version, memory and descriptors; every other name begins with cf_messaged_, and none is a creation time."""
    found = scrape(served.serve("127.0.0.1", 0))
    assert found["cf_messaged_info", __version__] == 1
    assert found["process_resident_memory_bytes", ""] > 0 and found["process_open_fds", ""] > 0
    strange = {name for name, _ in found if not name.startswith(("cf_messaged_", "process_"))}
    assert strange | {name for name, _ in found if name.endswith("_created")} == set()


def test_a_part_can_be_asked_for(served: Metrics) -> None:
    """?name[]= of a counter and of a gauge gives these two."""
    found = scrape(served.serve("127.0.0.1", 0), "?name[]=cf_messaged_stored_total&name[]=cf_messaged_subscriptions")
    assert found == {("cf_messaged_stored_total", ""): 0, ("cf_messaged_subscriptions", ""): 0}


# ---- the page


def test_the_page_is_there_on_ipv6(served: Metrics) -> None:
    """The address is told as it is bound, in brackets, and read_address() understands it."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    address = served.serve("::1", 0)
    host, port = read_address(address)
    assert (host, port > 0, address) == ("::1", True, f"[::1]:{port}")
    assert scrape(address)["cf_messaged_stored_total", ""] == 0


def test_the_start_asks_no_dns(served: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that is away does not hold up a listener: the name of the host is not looked up."""
    looked_up: list[str] = []

    def getfqdn(name: str = "") -> str:
        looked_up.append(name)
        return name

    monkeypatch.setattr(socket, "getfqdn", getfqdn)
    assert scrape(served.serve("127.0.0.1", 0))
    assert looked_up == []


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("127.0.0.1", "Address already in use"),
        ("192.0.2.1", "Cannot assign requested address"),
        ("a..b", "no name of a host"),
        ("name.invalid", "Name or service not known"),
    ],
)
def test_an_address_that_cannot_be_served(
    served: Metrics, monkeypatch: pytest.MonkeyPatch, host: str, reason: str
) -> None:
    """One line that names the address and why; then another address can be served."""

    def getaddrinfo(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        if host.endswith(".invalid"):  # asks no name server
            monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        with pytest.raises(CannotServe) as error:
            served.serve(host, port)
    assert isinstance(error.value, OSError)
    assert str(error.value) == f"cannot serve metrics on {host}:{port}: {reason}"
    monkeypatch.undo()
    assert scrape(served.serve("127.0.0.1", 0))


def test_after_its_end_nobody_is_served(served: Metrics) -> None:
    """The port is free at once, another end is harmless, and so is one without a begin."""
    served.close()
    address = served.serve("127.0.0.1", 0)
    assert scrape(address)
    served.close()
    served.close()
    with pytest.raises(ConnectionRefusedError):
        connect(address)
    assert served.serve(*read_address(address)) == address


def test_who_scrapes_slowly_holds_up_nobody(served: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who does not end his request waits alone: others are served, and the end does not wait for him."""
    monkeypatch.setattr(metrics._Handler, "timeout", None)  # he would be let go of otherwise
    address = served.serve("127.0.0.1", 0)
    with connect(address) as silent, connect(address) as slow:
        slow.sendall(b"GET /metrics HTTP/1.1\r\n")
        assert scrape(address)["cf_messaged_stored_total", ""] == 0
        slow.sendall(b"Host: x\r\n\r\n")
        assert slow.recv(12) == b"HTTP/1.0 200"
        served.close()
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.recv(1)


def test_who_says_nothing_is_let_go(
    served: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After a time, without a word in the log, as he holds a descriptor."""
    assert 0 < metrics.SCRAPE_TIMEOUT_S == metrics._Handler.timeout
    monkeypatch.setattr(metrics._Handler, "timeout", 0.01)
    address = served.serve("127.0.0.1", 0)
    with connect(address) as silent:
        assert silent.recv(1) == b""
    assert (caplog.messages, *capsys.readouterr()) == ([], "", "")


def test_a_bug_is_one_line_of_log(
    served: Metrics,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And no traceback; the next scrape is served."""

    def handle(_: object) -> None:
        raise RuntimeError("can't start new thread")

    address = served.serve("127.0.0.1", 0)
    with monkeypatch.context() as patch:
        patch.setattr(metrics._Handler, "handle", handle)
        with connect(address) as unlucky:
            assert unlucky.recv(1) == b""
    [line] = caplog.messages
    assert line.startswith("metrics for ('127.0.0.1', ") and line.endswith("RuntimeError: can't start new thread")
    assert scrape(address) and capsys.readouterr() == ("", "")


def test_a_scrape_is_no_line_of_log(served: Metrics, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a good one nor one with a method that is not allowed."""
    address = served.serve("127.0.0.1", 0)
    scrape(address)
    with connect(address) as other:
        other.sendall(b"BREW / HTTP/1.0\r\n\r\n")
        while other.recv(4096):
            pass
    assert capsys.readouterr() == ("", "")


def test_a_listener_may_count_while_it_is_scraped(served: Metrics) -> None:
    """New labels in the middle of a scrape do not break it."""
    interval_s = sys.getswitchinterval()
    collected = threading.Event()

    def count() -> None:
        while not collected.is_set():
            served.counters.refused.clear()
            for number in range(1000):
                served.counters.refused[f"reason {number}"] += 1

    counting = threading.Thread(target=count)
    sys.setswitchinterval(1e-6)
    counting.start()
    try:
        for _ in range(200):
            assert list(served.registry.collect())
    finally:
        collected.set()
        counting.join()
        sys.setswitchinterval(interval_s)


# ---- of a listener that is spoken to

EACH, BAD = 300, 7  # events of each who speaks, and what one of them says that is none
SPEAKERS = ("web1", "web2", *TELLS)
AT_THE_END = {
    ("cf_messaged_received_total", "request"): 4 * EACH + 5,
    ("cf_messaged_received_total", "push"): EACH + BAD,
    ("cf_messaged_received_total", "publish"): EACH,
    ("cf_messaged_received_total", "pair"): EACH,
    ("cf_messaged_stored_total", ""): len(SPEAKERS) * EACH + 1,
    ("cf_messaged_duplicates_total", ""): 2 * EACH,
    ("cf_messaged_refused_total", "malformed"): BAD,
    ("cf_messaged_refused_total", "cloned"): 1,
    ("cf_messaged_refused_total", "promised"): 1,
    ("cf_messaged_refused_total", "view"): 1,
    ("cf_messaged_later_total", ""): 0,
    ("cf_messaged_lost_total", ""): 0,
    ("cf_messaged_answers_dropped_total", ""): 0,
    ("cf_messaged_views_answered_total", ""): 1,
    ("cf_messaged_view_seconds_count", ""): 2,
    ("cf_messaged_batch_events_sum", ""): (len(SPEAKERS) + 2) * EACH + 3,
    ("cf_messaged_subscriptions", ""): 1,
}


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Listener]:
    """A cf-messaged with all its sockets, whose views have time on a busy machine."""
    settings = tmp_path / "settings.toml"
    settings.write_text('view_timeout_s = 600\nmetrics = "127.0.0.1:0"\npair = "tcp://127.0.0.1:*"\n')
    running = Listener(tmp_path, "--config", str(settings))
    yield running
    running.end()


def aged(number: int, node: str, kind: str = "state", data: object = 1) -> Event:
    """It has waited for an hour on its node."""
    return event(number, kind, data=data, node=node)._replace(time=rfc3339(int((time.time() - 3600) * 1_000_000)))


def request(context: zmq.Context[Socket], running: Listener, node: str) -> None:
    """All of it twice."""
    said = [aged(number, node) for number in range(1, EACH + 1)]
    Node(context, running.endpoint).say_all([*said, *said])


def tell(context: zmq.Context[Socket], running: Listener, role: str) -> None:
    """As a node whose name is that of the socket; where it pushes, with something between that is no event."""
    bad = [b"no event"] * BAD if role == "push" else []
    Teller(context, running, role).tell(*bad, *(aged(number, role) for number in range(1, EACH + 1)))


def say_what_is_refused(node: Node) -> None:
    assert node.say(aged(1, "web1", data="another")).status == REFUSED
    node.say(aged(EACH + 1, "web1", "common"))
    assert node.say(aged(EACH + 1, "web2", "common")).reason == "promised by web1"
    assert node.ask("nothing").status == REFUSED
    assert node.ask("nodes").status == ANSWERED


def test_a_listener_tells_all_that_happens(running: Listener, plain: zmq.Context[Socket]) -> None:
    """While nodes speak on every socket at once no counter falls; in the end all of it adds up."""
    page, subscriber = running.endpoints["metrics"], plain.socket(zmq.SUB)
    subscriber.rcvtimeo = int(scaled(60) * 1000)
    subscriber.connect(running.endpoints["subscribe"])
    subscriber.subscribe(b"")
    wait_for(lambda: scrape(page)["cf_messaged_subscriptions", ""] == 1)
    requests = [partial(request, plain, running, node) for node in ("web1", "web2")]
    speaking = [in_background(each) for each in (*requests, *(partial(tell, plain, running, role) for role in TELLS))]
    scrapes = [scrape(page)]
    while any(each.is_alive() for each in speaking):
        scrapes.append(scrape(page))
    say_what_is_refused(Node(plain, running.endpoint))
    wait_for(lambda: AT_THE_END.items() <= scrape(page).items())
    scrapes.append(scrape(page))
    check_that_none_falls(scrapes)
    check_batches(scrapes[-1])
    heard = [subscriber.recv_multipart() for _ in range(int(scrapes[-1]["cf_messaged_published_total", ""]))]
    assert {topic for topic, _ in heard} >= {f"state/load/{node}/".encode() for node in SPEAKERS}


def check_that_none_falls(scrapes: list[Samples]) -> None:
    rising = [key for key in scrapes[-1] if key[0].endswith(("_total", "_count", "_sum", "_bucket"))]
    fallen = {key for key in rising for before, after in pairwise(scrapes) if before.get(key, 0) > after[key]}
    assert fallen == set() and len(scrapes) > 2


def check_batches(found: Samples) -> None:
    """Several events in some of them, and of each how long it took, and that its events had waited for an hour."""
    batches = found["cf_messaged_batches_total", ""]
    counts = [
        found[f"cf_messaged_{name}_count", ""] for name in ("commit_seconds", "batch_events", "queue_age_seconds")
    ]
    assert counts == [batches] * 3 and found["cf_messaged_commit_seconds_sum", ""] > 0
    assert found["cf_messaged_batch_events_bucket", "1.0"] < batches
    ages = [found["cf_messaged_queue_age_seconds_bucket", le] for le in ("1800.0", "21600.0")]
    assert ages == [0, batches]


# ---- its address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9309", ("127.0.0.1", 9309)),
        ("[::1]:9309", ("::1", 9309)),
        ("[::ffff:127.0.0.1]:1", ("::ffff:127.0.0.1", 1)),
        ("localhost:9309", ("localhost", 9309)),
        ("hub-1.example.org:65535", ("hub-1.example.org", 65535)),
        ("127.0.0.1:0", ("127.0.0.1", 0)),
    ],
)
def test_what_is_an_address(text: str, address: tuple[str, int]) -> None:
    """IPv4, IPv6 in brackets, or a name, and a port."""
    assert read_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9309",
        ":9309",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:65536",
        "127.0.0.1:999999",
        "127.0.0.1:-1",
        "127.0.0.1:٣",
        "127.0.0.1:9309\n",
        "::1:9309",
        "[::1]",
        "[::1:9309",
        "[127.0.0.1]:9309",
        "[1::2::3]:9309",
        "[fe80::1%lo]:9309",
        "*:9309",
        "tcp://127.0.0.1:9309",
        "a b:9309",
        "ä:9309",
        "x" * 254 + ":9309",
    ],
)
def test_what_is_no_address(text: str) -> None:
    """The error shows the text, cut if it is long, and what is allowed."""
    with pytest.raises(ValueError, match=r"is no address to listen on: allowed are ADDRESS:PORT, NAME:PORT") as error:
        read_address(text)
    assert str(error.value).startswith(f"'{text:.100}'")
