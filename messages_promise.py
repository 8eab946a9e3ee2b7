"""The promise type `messages:`: cf-agent starts this file once a run and has it keep all messages: promises of the run.

It only starts: Python compiles this file anew in each run, but keeps what it has compiled of cf_messaging.
"""

from __future__ import annotations

from cf_messaging.promise import main

if __name__ == "__main__":
    main()
