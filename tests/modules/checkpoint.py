# mypy: allow-untyped-defs, allow-untyped-calls, disable-error-code="override"
"""A promise type with result classes and all hooks, whose third parameter is `meta` and optional, as of 2023."""

from __future__ import annotations

import os

from cfengine import PromiseModule, Result, ValidationError


class Checkpoint(PromiseModule):
    """The directory has a file of the promiser's name; at the end of the run a journal tells what it was asked."""

    def __init__(self, name="checkpoint", version="0.9", **kwargs):
        super().__init__(name, version, **kwargs)
        self.journal = None
        self.entries = []

    def protocol_init(self, version):
        self.log_info(f"initialized with {version}")
        return Result.SUCCESS

    def validate_promise(self, promiser, attributes, meta=None, **kwargs):
        directory = attributes.get("directory", "")
        if not os.path.isdir(directory):
            raise ValidationError(f"A {(meta or {}).get('promise_type')} needs a 'directory' that is there")
        self.journal = os.path.join(directory, "journal")

    def evaluate_promise(self, promiser, attributes, meta=None, **kwargs):
        directory, kind = attributes["directory"], (meta or {})["promise_type"]
        path = os.path.join(directory, promiser)
        self.entries.append(f"{kind} {promiser}")
        if os.path.isfile(path):
            return Result.KEPT, None if attributes.get("quiet") == "true" else [f"{promiser} was passed"]
        try:
            with open(path, "x"):
                pass
        except OSError as error:
            self.log_error(f"{promiser}: {error.strerror}")
            return (Result.NOT_KEPT, (f"{promiser} failed",))
        self.log_info(f"{promiser} is passed now")
        return (Result.REPAIRED, [f"{promiser} is/now passed", kind])

    def protocol_terminate(self):
        if self.journal:
            with open(self.journal, "a", encoding="utf-8") as file:
                file.write("".join(f"{entry}\n" for entry in [*self.entries, "end"]))
        return Result.SUCCESS


if __name__ == "__main__":
    Checkpoint().start()
