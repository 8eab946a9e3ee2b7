"""What may be spent in a minute, by each and by all."""

from __future__ import annotations

from cf_messaged.budget import INTERVAL_S, Budget


def test_who_has_spent_his_share_waits_for_the_next_minute() -> None:
    """Others go on; then he has all of it again."""
    budget = Budget(1000)
    assert budget.wait_s(b"a", 100.0) == 0
    budget.spend(b"a", 999)
    assert budget.wait_s(b"a", 101.0) == 0
    budget.spend(b"a", 1)
    assert budget.wait_s(b"a", 102.0) == INTERVAL_S - 2 and budget.wait_s(b"b", 102.0) == 0
    assert budget.wait_s(b"a", 100.0 + INTERVAL_S) == 0
    budget.spend(b"a", 1)
    assert budget.wait_s(b"a", 100.0 + INTERVAL_S) == 0


def test_a_share_that_counts_twice() -> None:
    """Who has spent his own may have spent less than two of it."""
    budget = Budget(10)
    assert budget.wait_s("a", 0.0) == 0
    budget.spend("a", 10)
    assert budget.wait_s("a", 0.0) and not budget.wait_s("a", 0.0, 2)
    budget.spend("a", 10)
    assert budget.wait_s("a", 0.0, 2)


def test_all_together_are_bounded() -> None:
    """However many there are, and whoever comes next."""
    budget = Budget(10, all=30)
    for who in range(3):
        assert budget.wait_s(who, 0.0) == 0
        budget.spend(who, 10)
    assert budget.wait_s(3, 1.0)
    assert budget.wait_s(3, INTERVAL_S) == 0
