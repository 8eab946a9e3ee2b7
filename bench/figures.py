"""How the benches tell what they have measured, and where."""

from __future__ import annotations

import os
from statistics import quantiles


def machine() -> str:
    """What the figures depend on most."""
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    return f"{os.uname().release}, {os.cpu_count()} cores, load {load}"


def p99(took: list[float]) -> float:
    return quantiles(took, n=100)[98]


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"
