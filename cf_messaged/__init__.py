"""cf-messaged: listens to what nodes promise, keeps it, and answers views of it."""

from __future__ import annotations

__version__ = "0.1.0"
