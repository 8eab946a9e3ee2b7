"""The SDK for cf-agent's custom promise protocol against arbitrary modules; of arbitrary input see test_fuzz_agent.py.

The invariant: whatever comes in and whatever hooks do, stdout is the protocol to the last byte, the end is
SystemExit, and nothing else escapes.
"""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from cfengine import ValidationError
from test_cfengine import Kept, byte_wise, declared, evaluate, talk, validate

any_text = st.text(st.characters(codec=None))
clean_text = st.text(st.characters(codec="utf-8"))
numbers = st.integers() | st.floats()
json_values = st.recursive(
    st.none() | st.booleans() | numbers | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)
TYPES = {"s": str, "i": int, "b": bool, "f": float, "l": list, "d": dict}


class Speaks(Kept):
    """Says what it hears, at every level, and knows an attribute of each type."""

    def __init__(self) -> None:
        super().__init__()
        for name, typing in TYPES.items():
            self.add_attribute(name, typing)

    def evaluate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> Any:
        for log in (self.log_error, self.log_info, self.log_verbose, self.log_debug):
            log(promiser)
            log(attributes)
        return "kept", [promiser]


class Odd(Kept):
    """Does in its hooks whatever it is told."""

    def __init__(
        self, returned: Any = "kept", prepared: Any = None, said: Any = "", raised: BaseException | None = None
    ):
        super().__init__()
        self.returned, self.prepared, self.said, self.raised = returned, prepared, said, raised

    def prepare_promiser_and_attributes(self, promiser: str, attributes: dict[str, Any]) -> Any:
        return self.prepared or (promiser, attributes)

    def evaluate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> Any:
        self.log_info(self.said)
        if self.raised:
            raise self.raised
        return self.returned


objects = json_values | st.binary() | st.sets(st.integers()) | st.builds(object) | st.complex_numbers()
results = st.sampled_from(["kept", "repaired", "not_kept", "error"])


@given(objects | st.tuples(results | objects, objects) | st.tuples(results, st.lists(any_text)))
def test_any_return(returned: Any) -> None:
    """Whatever evaluate_promise returns, the next promise is served."""
    _, second = talk(Odd(returned), evaluate(), validate())
    assert (second.result, second.logs) == ("valid", [])


@given(objects | st.tuples(any_text | objects, st.dictionaries(any_text | numbers, objects) | objects))
def test_any_preparation(prepared: Any) -> None:
    """Whatever prepare_promiser_and_attributes returns, the next promise is served."""
    assert len(talk(Odd(prepared=prepared), evaluate(), validate())) == 2


@given(any_text | objects)
@example("\r\n\0\x0b\x0c\x1c\x85\u2028")
def test_any_log_text(said: Any) -> None:
    """Whatever is logged stays one line."""
    [answer] = talk(Odd(said=said), evaluate())
    assert answer.result == "kept" and len(answer.logs) == 1


exceptions = st.sampled_from([Exception, ValueError, ValidationError, KeyError, OSError, SystemExit, BaseException])


@given(exceptions, any_text | objects)
def test_any_exception(kind: Any, argument: Any) -> None:
    """Whatever a hook raises, the next promise is served."""
    failed, following = talk(Odd(raised=kind(argument)), evaluate(), validate())
    assert failed.result in ("error", "invalid") and failed.logs[1:]
    assert (following.result, following.logs) == ("valid", [])


@given(any_text, clean_text, st.binary())
def test_text_of_3_21(promiser: str, key: str, raw: bytes) -> None:
    """Raw UTF-8 and invalid bytes come to the hooks as they were, and go back as they came."""
    promiser = promiser.encode("utf-8", "replace").decode()
    value = raw.decode("utf-8", "surrogateescape")
    module = Kept()
    seen: dict[str, Any] = {"utf_8": "é", "container": [value, {key: value}]}
    [answer] = talk(module, evaluate(promiser, **seen))
    assert module.asked[0][:2] == (promiser, seen)
    assert (answer.result, answer.reply["promiser"]) == ("kept", promiser)


@given(clean_text, clean_text)
def test_text_of_3_27(promiser: str, text: str) -> None:
    """Byte-wise escapes are put together again, whatever the text."""
    module = Kept()
    bare = evaluate("PROMISER", key=["TEXT", {"TEXT": "TEXT"}])
    escaped = bare.replace(b'"PROMISER"', byte_wise(promiser).encode()).replace(b'"TEXT"', byte_wise(text).encode())
    talk(module, escaped)
    assert module.asked[0][:2] == (promiser, {"key": [text, {text: text}]})


digits = st.integers().map(str)
words = st.sampled_from(["true", "yes", "off", "1e3", "0.5", "nan", "{}", '{"a": 1}', "[1]", "null", " 1", "\u0663"])


@given(st.sampled_from(sorted(TYPES)), json_values | digits | words | any_text)
def test_any_value_of_any_type(name: str, value: Any) -> None:
    """Any value for any type is converted or makes the promise invalid; it is never an error of the module."""
    module = declared("named", TYPES[name])
    request = json.dumps({**json.loads(validate()), "attributes": {"named": value}})
    [answer] = talk(module, request.encode() + b"\n\n")
    assert answer.result in ("valid", "invalid"), answer.log
    assert answer.result == "invalid" or type(module.asked[0][1]["named"]) is TYPES[name]
    assert answer.result == "valid" or len(answer.logs) == 1
