"""Who may say and ask what: the rules, and a listener with keys that goes by them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import zmq

from cf_messaged.config import BadConfig, Config
from cf_messaged.rights import Rights, read
from cf_messaging.wire import ANSWERED, KINDS, REFUSED, STORED
from listener import Listener, Node, accepted, event
from peers import Socket
from test_service import Start, select, start  # noqa: F401 - a fixture

RULES = [
    {"nodes": ["hub*.example.org"], "say": ["common/dns", "static/*"], "ask": ["nodes"]},
    {"nodes": ["*.example.org"], "say": []},
    {"nodes": ["root"], "say": ["*"], "ask": ["*"]},
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


def test_nothing_is_for_all_but_what_is_their_own() -> None:
    """Each kind that one node says for all needs a rule."""
    assert {name for name in KINDS if not Rights().may_say("web1", name, "x")} == {"common"}


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("web1", "rule 1 is 'web1': allowed is a table"),
        ({"say": ["*"]}, "rule 1 has no 'nodes'"),
        ({"nodes": ["*"], "sya": ["*"]}, "rule 1 has 'sya': there are nodes, say, ask"),
        ({"nodes": "*"}, "'nodes' of rule 1 is '*': allowed is a list of patterns"),
        ({"nodes": ["*"], "ask": [1]}, "'ask' of rule 1 is [1]: allowed is a list of patterns"),
        ({"nodes": ["*"], "say": ["common"]}, "'say' of rule 1 is 'common': allowed is KIND/NAME"),
    ],
)
def test_a_rule_that_is_none(rule: Any, told: str) -> None:
    """One line says which, and what is allowed."""
    with pytest.raises(BadConfig) as caught:
        Config(rights=[rule])
    assert told in str(caught.value) and "\n" not in str(caught.value)


# ---- in a listener


@pytest.fixture
def listener(start: Start, tmp_path: Path) -> Listener:  # noqa: F811
    (tmp_path / "settings.toml").write_text(
        f'keys_dir = "{tmp_path}/keys"\n[[rights]]\nnodes = ["hub"]\nsay = ["*"]\nask = ["*"]\n'
    )
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
    """Of a view with a parameter `node`, asked for or not; other rows, and views of all nodes, are refused."""
    web, hub = known(plain, listener, "web1"), known(plain, listener, "hub")
    assert hub.say(event(1, node="hub", stream="3" * 32)).status == STORED
    assert web.say(event(1)).status == STORED
    for parameters in ({}, {"node": "web1"}):
        answer = web.ask("latest", parameters)
        assert (answer.status, [row["node"] for row in answer.rows]) == (ANSWERED, ["web1"])
    assert "may see its own rows of view 'latest', no others" in web.ask("latest", {"node": "hub"}).reason
    assert "may not see view 'nodes', which is of all nodes" in web.ask("nodes").reason
    assert web.ask("common").status == ANSWERED
    nosy = hub.ask("latest")  # by its key it is hub, and the question says web1
    assert nosy.status == REFUSED and "by its key it is hub" in nosy.reason
