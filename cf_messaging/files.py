"""Payload files in, received files out: replaced atomically, left alone if equal, safe for cf-agent's readjson()."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter

from .outcomes import Failure, Reason
from .wire import MAX_PAYLOAD_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from .wire import Message

MAX_DEPTH = 64  # levels of nesting in a file for readjson(), its own two included
_INT_RANGE = range(-(2**31), 2**31)  # cf-agent wraps larger integers silently
_EXPANDED = ("$(", "${", "@(", "@{")  # cf-agent would expand these in data: a peer could read policy variables
# What libzmq opens for a first link and a connection; where it cannot, it aborts the process.
_DESCRIPTORS = 20


def check_descriptors() -> None:
    """Raise Failure unless there are enough file descriptors to load libzmq and to open one more link."""
    spare: list[int] = []
    try:
        while len(spare) < _DESCRIPTORS:
            spare.append(os.dup(2))
    except OSError as error:
        detail = f"{error.strerror}: fewer than {_DESCRIPTORS} more are allowed to this run (ulimit -n)"
        raise Failure(Reason.LOCAL, detail) from error
    finally:
        for descriptor in spare:
            os.close(descriptor)


def _at_once(path: str, flags: int) -> int:
    """For open(), which leaves a descriptor open that it was given and that is a directory's: a FIFO does not wait."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def read_payload(path: str) -> bytes:
    """The bytes of a payload file. Raises Failure when there is no regular file, or one over MAX_PAYLOAD_BYTES."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Failure(Reason.LOCAL, f"payload_file {path} is not a regular file")
            data = file.read(MAX_PAYLOAD_BYTES + 1)
    except OSError as error:
        raise Failure(Reason.LOCAL, f"payload_file {path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_PAYLOAD_BYTES:
        raise Failure(Reason.LOCAL, f"payload_file {path} is larger than MAX_PAYLOAD_BYTES, {MAX_PAYLOAD_BYTES} bytes")
    return data


def as_value(payload: bytes) -> Any:
    """Of information from a file: its value if it is a JSON object or array, else its text."""
    text = payload.decode("utf-8", "surrogateescape")
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass
    return text


def check_writable(path: str) -> None:
    """Raise Failure if path could not be replaced: known before a message is said whose answer would be lost."""
    directory = os.path.dirname(path)
    if os.path.isdir(path):
        raise _unwritable(path, "it is a directory")
    if not os.path.isdir(directory):
        raise _unwritable(path, f"there is no directory {directory}")
    if not os.access(directory, os.W_OK | os.X_OK):
        read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        raise _unwritable(path, f"{directory} is read-only" if read_only else f"no permission in {directory}")


def _unwritable(path: str, why: str) -> Failure:
    return Failure(Reason.LOCAL, f"file {path} cannot be written: {why}")


def keep(path: str, data: bytes) -> bool:
    """Make path a file of mode 600 with these bytes, atomically; False if it held them already."""
    if _holds(path, data):
        return False
    temporary = os.path.join(os.path.dirname(path), f".messages-{os.getpid()}.new")
    try:
        _write_new(temporary, data)
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise _unwritable(path, str(error.strerror)) from error
    return True


def _holds(path: str, data: bytes) -> bool:
    try:
        with open(path, "rb", opener=lambda path, flags: _at_once(path, flags | os.O_NOFOLLOW)) as file:
            status = os.fstat(file.fileno())
            return stat.S_ISREG(status.st_mode) and status.st_size == len(data) and file.read() == data
    except OSError:  # none there, or none that can be read: it is replaced
        return False


def _write_new(path: str, data: bytes) -> None:
    _remove(path)  # of a run that was killed and had our process id
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:  # none there; else what is done next there tells
        pass


def as_text(messages: Sequence[Message], wanted: int | None) -> bytes:
    """Where one message is wanted exactly its bytes, else each message on a line."""
    if wanted == 1:
        return b"".join(message.payload for message in messages)
    return b"".join(message.payload + b"\n" for message in messages)


def as_json(messages: Sequence[Message]) -> bytes:
    """An array of objects with payload (its value where it is JSON, else its text) and topic, safe for readjson().

    Raises ValueError, which says what cannot be made safe.
    """
    rows = [{"payload": _value(message.payload), "topic": _safe_text(_text(message.topic))} for message in messages]
    return b"".join((b"[\n", b",\n".join(_line(row) for row in rows), b"\n]\n"))


def as_rows(rows: list[dict[str, Any]]) -> tuple[bytes, list[str]]:
    """An array of the rows of a view, safe for readjson(), and in words what of them had to become null, each once."""
    warnings: list[str] = []
    lines = [_line(_safe_row(row, warnings)) for row in rows]
    told = [text if count == 1 else f"{text}, {count} times" for text, count in Counter(warnings).items()]
    return b"".join((b"[\n", b",\n".join(lines), b"\n]\n" if lines else b"]\n")), told


def _safe_row(row: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
    """What one node said must not cost the others their rows."""
    safe: dict[str, Any] = {}
    for name, value in row.items():
        try:
            column = _safe_text(name)
        except ValueError as error:
            warnings.append(f"a column is {error}: left out")
            continue
        try:
            safe[column] = _safe(_plain(value), 2)
        except ValueError as error:
            safe[column] = None
            warnings.append(f"'{column}' of node '{row.get('node')}' is {error}: taken for null")
    return safe


def _plain(value: Any) -> Any:
    """A value with numbers that cf-agent can read."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _safe_int(str(value))
    if isinstance(value, float) and value - value == 0:
        return _safe_real(repr(value))
    if isinstance(value, list):
        return [_plain(element) for element in value]
    return {key: _plain(element) for key, element in value.items()} if isinstance(value, dict) else value


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8")


def _value(payload: bytes) -> Any:
    text = _text(payload)
    try:
        value = json.loads(text, parse_int=_safe_int, parse_float=_safe_real, parse_constant=float)
    except json.JSONDecodeError:
        return _safe_text(text)
    except RecursionError:
        raise ValueError(f"JSON nested deeper than {MAX_DEPTH} levels") from None
    return _safe(value, 2)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("bytes that are not UTF-8") from None


def _safe(value: Any, depth: int) -> Any:
    """The value with what cf-agent would stumble over made harmless; depth: levels that it is inside of."""
    if isinstance(value, str):
        return _safe_text(value)
    if isinstance(value, float) and value - value != 0:
        raise ValueError(f"{value}, which is no number of JSON")
    if not isinstance(value, (list, dict)):
        return value
    if depth == MAX_DEPTH:
        raise ValueError(f"JSON nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, list):
        return [_safe(element, depth + 1) for element in value]
    return {_safe_text(key): _safe(element, depth + 1) for key, element in value.items()}


def _safe_text(text: str) -> str:
    if "\0" in text:
        raise ValueError("text with a NUL character")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("text with half a surrogate pair")
    for mark in _EXPANDED:
        if mark in text:
            raise ValueError(f"text with {mark!r}, which cf-agent would expand")
    return text


def _safe_int(literal: str) -> int | str:
    return literal if len(literal) > 11 or int(literal) not in _INT_RANGE else int(literal)


def _safe_real(literal: str) -> float | str:
    """A float if it is written without an exponent, else its literal as a string: cf-agent ends its run on 1e-05."""
    value = float(literal)
    return value if "e" not in literal.lower() and repr(value).replace(".", "").lstrip("-").isdigit() else literal
