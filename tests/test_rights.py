"""Who may say and ask what: the rules, and a listener with keys that goes by them."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from cf_messaged.config import BadConfig, Config
from cf_messaged.rights import Rights, read
from cf_messaging.wire import ANSWERED, KINDS, REFUSED, STORED
from listener import Listener, Node, accepted, event, subscriber
from peers import Socket
from test_cfengine import wait_for
from test_metrics import scrape
from test_service import Start, select, start  # noqa: F401 - a fixture
from test_sockets import count_of

RULES = [
    {
        "nodes": ["hub*.example.org"],
        "say": ["common/dns", "static/*"],
        "ask": ["nodes"],
        "subscribe": ["state/é*", "static/*/web1/*"],
    },
    {"nodes": ["*.example.org"], "say": []},
    {"nodes": ["root"], "say": ["*"], "ask": ["*"], "subscribe": ["*"]},
]


@pytest.mark.parametrize(
    ("node", "said", "may"),
    [
        ("web1", "static/os", True),
        ("web1", "dynamic/addresses", True),
        ("web1", "state/load", True),
        ("web1", "common/dns", False),
        ("hub1.example.org", "common/dns", True),
        ("hub1.example.org", "common/dns/more", False),
        ("hub1.example.org", "state/load", False),  # the rule tells all that it may say
        ("web1.example.org", "state/load", False),  # the first rule that names it holds
        ("root", "common/any", True),
    ],
)
def test_what_a_node_may_say(node: str, said: str, may: bool) -> None:
    kind, _, name = said.partition("/")
    assert Rights(read(RULES)).may_say(node, kind, name) is may


@pytest.mark.parametrize(
    ("node", "view", "may"),
    [
        ("web1", "common", True),
        ("web1", "nodes", False),
        ("hub1.example.org", "nodes", True),
        ("hub1.example.org", "common", False),
        ("web1.example.org", "common", True),  # what a rule does not tell is as for all others
        ("root", "history", True),
    ],
)
def test_which_views_a_node_may_see_all_of(node: str, view: str, may: bool) -> None:
    assert Rights(read(RULES)).may_ask(node, view) is may


@pytest.mark.parametrize(
    ("node", "topic", "may"),
    [
        ("web1", "common/", True),
        ("web1", "common/dns/", True),
        ("web1", "", False),
        ("web1", "common", False),  # common2/ begins like it
        ("web1", "static/os/web1/", False),
        ("hub1.example.org", "common/", False),
        ("hub1.example.org", "state/é", True),
        ("hub1.example.org", "state/éa", True),
        ("hub1.example.org", "state/", False),
        ("hub1.example.org", "static/os/web1/", True),
        ("hub1.example.org", "static/os/web1", False),  # and that of web10
        ("root", "", True),
    ],
)
def test_what_a_node_may_subscribe_to(node: str, topic: str, may: bool) -> None:
    assert Rights(read(RULES)).may_subscribe(node, topic.encode()) is may


@pytest.mark.parametrize("name", ["disk[0]", "up?", "a[!b]", "[", "[[]", "]", "\\d", "two\nlines", "a.b"])
def test_nothing_but_a_star_is_more_than_itself(name: str) -> None:
    """A name is its own pattern, and of no other one; a star is any text, also with a line's end in it."""
    rules = Rights(read([{"nodes": ["*"], "say": [f"state/{name}", f"common/{name}*"]}]))
    others = ["disk0", "up", "up2", "ac", "", "a", "d", "7", "two lines", "axb"]
    assert rules.may_say("web1", "state", name) and not any(rules.may_say("web1", "state", each) for each in others)
    assert rules.may_say("web1", "common", f"{name}\nany") and not rules.may_say("web1", "common", "axb")


@given(st.lists(st.text("ab/*?é", max_size=4), min_size=1, max_size=3), st.binary(max_size=8), st.binary(max_size=8))
def test_a_longer_topic_is_never_more(patterns: list[str], topic: bytes, more: bytes) -> None:
    """Who may subscribe to all that begins so may subscribe to all that begins so and goes on, also within a letter."""
    rules = Rights(read([{"nodes": ["*"], "subscribe": [f"{pattern}*" for pattern in patterns]}]))
    assert not rules.may_subscribe("web1", topic) or rules.may_subscribe("web1", topic + more)


def test_nothing_is_for_all_but_what_is_their_own() -> None:
    """Each kind that one node says for all needs a rule."""
    assert {name for name in KINDS if not Rights().may_say("web1", name, "x")} == {"common"}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("web1", "rule 1 is 'web1': allowed is a table"),
        ({"say": ["*"]}, "rule 1 has no 'nodes'"),
        ({"nodes": ["*"], "sya": ["*"]}, "rule 1 has 'sya': there are nodes, say, ask, subscribe"),
        ({"nodes": "*"}, "'nodes' of rule 1 is '*': allowed is a list of patterns"),
        ({"nodes": ["*"], "ask": [1]}, "'ask' of rule 1 is [1]: allowed is a list of patterns"),
        ({"nodes": ["*"], "say": ["common"]}, "'say' of rule 1 is 'common': allowed is KIND/NAME"),
        ({"nodes": ["*"], "subscribe": ["state/"]}, "'subscribe' of rule 1 is 'state/': allowed is KIND/NAME/* or *"),
    ],
)
def test_a_rule_that_is_none(rule: Any, told: str) -> None:
    """One line says which, and what is allowed."""
    with pytest.raises(BadConfig) as caught:
        Config(rights=[rule])
    assert told in str(caught.value) and "\n" not in str(caught.value)


# ---- in a listener


SETTINGS = """
keys_dir = "{0}/keys"
metrics = "127.0.0.1:0"
[[rights]]
nodes = ["hub", "monitor"]
say = ["*"]
ask = ["*"]
subscribe = ["*"]
"""


@pytest.fixture
def listener(start: Start, tmp_path: Path) -> Listener:  # noqa: F811
    (tmp_path / "settings.toml").write_text(SETTINGS.format(tmp_path))
    return start("--config", str(tmp_path / "settings.toml"))


def known(context: zmq.Context[Socket], listener: Listener, name: str) -> Node:
    """A node whose key is accepted."""
    [keys] = accepted(listener.store.parent / "keys", [name])
    return Node(context, listener.endpoint, keys)


def test_what_may_not_be_said_is_refused(listener: Listener, plain: zmq.Context[Socket]) -> None:
    """With its reason, in an answer and in the log, and without an effect; who may is not held up."""
    web, hub = known(plain, listener, "web1"), known(plain, listener, "hub")
    refused = web.say(event(1, "common", "dns"))
    assert (refused.status, refused.id) == (REFUSED, event(1).id)
    assert refused.reason.startswith("web1 may not say common information 'dns': see `rights`")
    assert listener.wait_for("web1 may not say common information 'dns'")
    assert hub.say(event(1, "common", "dns", node="hub", stream="3" * 32)).status == STORED
    assert web.say(event(2)).status == STORED
    assert select(listener, "SELECT node, name FROM latest ORDER BY node") == [("hub", "dns"), ("web1", "load")]


def test_a_node_sees_its_own_rows(listener: Listener, plain: zmq.Context[Socket]) -> None:
    """Of a view with a parameter `node`, asked for or not; what it may not see is in test_attacks.py."""
    web, hub = known(plain, listener, "web1"), known(plain, listener, "hub")
    assert hub.say(event(1, node="hub", stream="3" * 32)).status == STORED
    assert web.say(event(1)).status == STORED
    for parameters in ({}, {"node": "web1"}):
        answer = web.ask("latest", parameters)
        assert (answer.status, [row["node"] for row in answer.rows]) == (ANSWERED, ["web1"])
    assert web.ask("common").status == ANSWERED


def subscribed(context: zmq.Context[Socket], listener: Listener, name: str, *topics: bytes) -> Socket:
    """A SUB with a key that is accepted under this name."""
    [keys] = accepted(listener.store.parent / "keys", [name])
    return subscriber(context, listener, keys, *topics)


def topics(source: Socket, last: str) -> set[str]:
    """That are heard, up to this one."""
    heard: set[str] = set()
    while last not in heard:
        heard.add(source.recv_multipart()[0].decode())
    return heard


def test_a_topic_without_the_right_is_not_heard(listener: Listener, plain: zmq.Context[Socket]) -> None:
    """Neither its last values nor new ones; what else the same node subscribes to is, and others hear all."""
    hub = known(plain, listener, "hub")
    assert hub.say(event(1, node="hub")).status == STORED
    nosy = subscribed(plain, listener, "web1", b"", b"state/", b"common/")
    assert listener.wait_for("refused: web1 may not subscribe to 'state/': see `rights` in the listener's settings")
    everything = subscribed(plain, listener, "monitor", b"")
    assert topics(everything, "state/load/hub/")
    assert hub.say(event(2, node="hub")).status == STORED
    assert hub.say(event(3, "common", "dns", node="hub")).status == STORED
    assert topics(everything, "common/dns/hub/") == {"state/load/hub/", "common/dns/hub/"}
    assert topics(nosy, "common/dns/hub/") == {"common/dns/hub/"}
    assert count_of(listener, "refused", "forbidden") == 2


def test_who_is_refused_takes_nothing_from_others(listener: Listener, plain: zmq.Context[Socket]) -> None:
    """When he leaves, who is subscribed to the same stays so."""
    everything, nosy = (subscribed(plain, listener, name, b"state/") for name in ("monitor", "web1"))
    assert listener.wait_for("web1 may not subscribe")
    hub = known(plain, listener, "hub")
    assert hub.say(event(1, node="hub")).status == STORED
    assert topics(everything, "state/load/hub/")
    nosy.close()
    wait_for(lambda: scrape(listener.endpoints["metrics"])["cf_messaged_subscriptions", ""] == 1)
    assert hub.say(event(2, name="cpu", node="hub")).status == STORED
    assert topics(everything, "state/cpu/hub/")


def test_other_rights_count_from_the_reload_on(listener: Listener, plain: zmq.Context[Socket], tmp_path: Path) -> None:
    """Also for who is subscribed already: he is hung up on, comes again by himself, and hears what he may now."""
    hub, standing = known(plain, listener, "hub"), subscribed(plain, listener, "monitor", b"")
    assert hub.say(event(1, node="hub")).status == STORED
    assert topics(standing, "state/load/hub/")
    settings = tmp_path / "settings.toml"
    settings.write_text(settings.read_text().replace('subscribe = ["*"]', 'subscribe = ["state/cpu/*"]'))
    listener.process.send_signal(signal.SIGHUP)
    wait_for(
        lambda: not standing.poll(50) and any("monitor may not subscribe to ''" in line for line in listener.heard)
    )
    standing.subscribe(b"state/cpu/")
    for number, name in enumerate(("load", "cpu"), 2):
        assert hub.say(event(number, name=name, node="hub")).status == STORED
    assert topics(standing, "state/cpu/hub/") == {"state/cpu/hub/"}
