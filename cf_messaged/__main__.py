"""`python -m cf_messaged` is cf-messaged."""

from __future__ import annotations

from cf_messaged.cli import main

if __name__ == "__main__":  # the processes that run views import this file too
    main(prog_name="cf-messaged")
