# mypy: allow-untyped-defs, allow-untyped-calls
"""A promise type that declares its attributes and leaves validation to the library."""

from __future__ import annotations

from cfengine import PromiseModule, Result, ValidationError


class TextFile(PromiseModule):
    """The promiser, a path or a file:// URL, has a title, the lines with words replaced in them, and a footer."""

    def __init__(self, **kwargs):
        super().__init__(name="text_file", version="1.2.3", **kwargs)

        def must_be_positive(value):
            if value < 1:
                raise ValidationError(f"The attribute 'copies' must be 1 or more, not {value}")

        self.add_attribute("lines", list, required=True)
        self.add_attribute("copies", int, default=1, validator=must_be_positive)
        self.add_attribute("numbered", bool, default=False)
        self.add_attribute("title", str, default_to_promiser=True)
        self.add_attribute("words", dict)
        self.add_attribute("footer", list, default=["--"])

    def prepare_promiser_and_attributes(self, promiser, attributes):
        scheme = "file://"
        return (promiser[len(scheme) :] if promiser.startswith(scheme) else promiser), attributes

    def evaluate_promise(self, promiser, attributes, metadata):
        model = self.create_attribute_object(promiser, attributes)
        lines = model.lines * model.copies
        for word, other in (model.words or {}).items():
            lines = [line.replace(word, other) for line in lines]
        if model.numbered:
            lines = [f"{number + 1} {line}" for number, line in enumerate(lines)]
        model.footer.append(f"{len(lines)} lines")  # must not be seen by the next promise
        text = "\n".join([model.title, *lines, *model.footer, ""])
        try:
            with open(promiser, encoding="utf-8") as file:
                if file.read() == text:
                    return Result.KEPT
        except FileNotFoundError:
            pass
        with open(promiser, "w", encoding="utf-8") as file:
            file.write(text)
        self.log_info(f"{promiser} was written")
        return Result.REPAIRED


if __name__ == "__main__":
    TextFile().start()
