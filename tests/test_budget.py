"""What may be answered in a minute, to a node and to all."""

from __future__ import annotations

from cf_messaged.budget import BYTES_TO_A_NODE, BYTES_TO_ALL, INTERVAL_S, Budget


def test_a_node_that_had_too_much_waits_for_the_next_minute() -> None:
    """Others go on; then it has all of its share again."""
    budget = Budget()
    assert budget.left(b"a", 100.0)
    budget.spend(b"a", BYTES_TO_A_NODE - 1)
    assert budget.left(b"a", 101.0)
    budget.spend(b"a", 1)
    assert not budget.left(b"a", 102.0) and budget.left(b"b", 102.0)
    assert budget.wait_s(102.0) == INTERVAL_S - 2
    assert budget.left(b"a", 100.0 + INTERVAL_S)
    budget.spend(b"a", 1)
    assert budget.left(b"a", 100.0 + INTERVAL_S)


def test_all_together_are_bounded() -> None:
    """However many nodes there are, and whoever asks next."""
    budget, nodes = Budget(), [b"%d" % number for number in range(BYTES_TO_ALL // BYTES_TO_A_NODE)]
    for node in nodes:
        assert budget.left(node, 0.0)
        budget.spend(node, BYTES_TO_A_NODE)
    assert not budget.left(b"another", 1.0)
    assert budget.left(b"another", INTERVAL_S)
