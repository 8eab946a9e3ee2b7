# mypy: allow-untyped-defs, allow-untyped-calls
"""A promise type in the oldest style: no attribute is declared, the module itself looks at what came."""

from __future__ import annotations

import os

from cfengine import PromiseModule, Result, ValidationError


class LineInFile(PromiseModule):
    """The promiser, a file, has the line, or with state => "absent" has it not."""

    def validate_promise(self, promiser, attributes, metadata):
        if not os.path.isabs(promiser):
            raise ValidationError(f"The promiser must be an absolute path, not '{promiser}'")
        if "line" not in attributes:
            raise ValidationError("The attribute 'line' is missing")
        if type(attributes["line"]) is not str:
            raise ValidationError("The attribute 'line' must be a string")
        if attributes.get("state", "present") not in ("present", "absent"):
            raise ValidationError(f"The attribute 'state' must be present or absent, not '{attributes['state']}'")

    def evaluate_promise(self, promiser, attributes, metadata):
        line, wanted = attributes["line"], attributes.get("state", "present") == "present"
        self.log_debug(f"{promiser} is read")
        try:
            lines = self.read(promiser)
        except OSError as error:
            self.log_error(f"{promiser} cannot be read: {error.strerror}")
            return Result.NOT_KEPT
        if lines.count(line) > 1:
            self.log_warning(f"{promiser} has '{line}' {lines.count(line)} times")
        if (line in lines) == wanted:
            self.log_verbose(f"{promiser} is as it should be")
            return Result.KEPT
        lines = [*lines, line] if wanted else [other for other in lines if other != line]
        try:
            self.write(promiser, lines)
        except OSError as error:
            self.log_critical(f"{promiser} cannot be written: {error.strerror}")
            return Result.NOT_KEPT
        self.log_info(f"{promiser} {'got' if wanted else 'lost'} '{line}'")
        return Result.REPAIRED

    def read(self, path):
        try:
            with open(path, encoding="utf-8") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            self.log_notice(f"{path} is not there yet")
            return []

    def write(self, path, lines):
        with open(path, "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    LineInFile("line_in_file", "0.0.1").start()
