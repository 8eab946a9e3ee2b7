"""The promise type `messages:`: cf-agent starts this file once a run and has it keep all messages: promises of the run.

`python3 messages_promise.py explain ENDPOINT` tells an operator at which stage a message to a cf-messaged ends.

It only starts: Python compiles this file anew in each run, but keeps what it has compiled of cf_messaging.
"""

from __future__ import annotations

import gc
import os
import sys

# A run leaves little for the collector, which the imports alone would call dozens of times.
gc.set_threshold(100_000)

from cf_messaging.promise import run  # noqa: E402 - after that

if __name__ == "__main__":
    if sys.argv[1:2] == ["explain"]:  # by hand, never by cf-agent
        from cf_messaging.explain import main

        os._exit(main(sys.argv[2:]))
    os._exit(run())  # all is closed: what Python would still tidy up costs more than a kept promise
