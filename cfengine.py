"""The base class of CFEngine promise modules written in Python: cf-agent's custom promise protocol, nothing else.

A module derives from PromiseModule, overrides hooks and calls start(). The interface is that of the library of the
same name that CFEngine ships, so modules written for one run on the other. Standard library only, Python >= 3.9.

Source: "Promise types / custom" of the CFEngine documentation; where cf-agent behaves otherwise, cf-agent.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections import namedtuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import IO, Any, NoReturn

# Attributes of every promise type that cf-agent passes on to the module, whatever its documentation says.
COMMON_ATTRIBUTES = frozenset(
    "action_policy audit background comment expireafter handle ifelapsed log_failed log_kept log_priority"
    " log_repaired log_string measurement_class report_level".split()
)
LOG_LEVELS = ("critical", "error", "warning", "notice", "info", "verbose", "debug")  # most severe first
_RANKS = {level: rank for rank, level in enumerate(LOG_LEVELS)}
_ALWAYS_SENT = _RANKS["info"]  # the agent counts these lines, whatever it shows

_TYPE_NAMES = {str: "string", int: "int", float: "real", bool: "true/false", list: "slist", tuple: "slist"}
_TYPE_NAMES[dict] = "data container"
_BOOLEANS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_DECODE = json.JSONDecoder(strict=False).raw_decode  # cf-agent does not escape all control characters
_ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_ESCAPES = {ord("\n"): "\\n", ord("\r"): "\\r", 0: "\\0"}  # one log message, one line


class Result:
    """Of an evaluation, of a validation, of init and terminate; ERROR: the module itself failed."""

    KEPT, REPAIRED, NOT_KEPT = "kept", "repaired", "not_kept"
    VALID, INVALID = "valid", "invalid"
    SUCCESS, FAILURE = "success", "failure"
    ERROR = "error"


_OUTCOMES = (Result.KEPT, Result.REPAIRED, Result.NOT_KEPT, Result.ERROR)


class _Complaint(Exception):
    def __init__(self, message: object) -> None:
        super().__init__(message)
        self.message = message


class ValidationError(_Complaint):
    """The policy is wrong; the text says how."""


class ProtocolError(_Complaint):
    """What was read is not cf-agent's protocol."""


class _Unreadable(ProtocolError):
    """A request that cannot be served, where those after it can be read: sound JSON that Python will not hold."""


class _Ended(BaseException):
    """The conversation is over before cf-agent said terminate; a BaseException, so that no hook swallows it."""


_Attribute = namedtuple("_Attribute", "typing default required default_to_promiser validator")


class AttributeObject:
    """A promise's attributes as attributes of an object."""

    def __init__(self, d: Mapping[str, Any]) -> None:
        self.__dict__.update(d)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__qualname__!r} object has no attribute {name!r}")

    def __repr__(self) -> str:
        return f"{type(self).__qualname__}({', '.join(f'{k}={v!r}' for k, v in self.__dict__.items())})"


class _Strays(io.TextIOBase):
    """Takes the place of sys.stdout, which belongs to the protocol: what is printed becomes log lines."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._rest = ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 1

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._log(line)
        return len(text)

    def end_line(self) -> None:
        if self._rest:
            self.write("\n")


class _Channel:
    """Lines from and to cf-agent. Bytes that are no UTF-8 survive as surrogate escapes, whatever the locale."""

    def __init__(self, in_file: IO[Any], out_file: IO[Any], record: IO[bytes] | None) -> None:
        self._in = getattr(in_file, "buffer", in_file)
        self._out = getattr(out_file, "buffer", out_file)
        self._text_out = isinstance(self._out, io.TextIOBase)
        self._record = record
        self._held: list[str] = []
        self._writing = False
        self._stopped_by = ""

    def read_line(self) -> str:
        """The next line without its end. Raises _Ended at the end of input, half a line included."""
        line: Any = self._in.readline()
        if not isinstance(line, str):
            line = line.decode("utf-8", "surrogateescape")
        if line[-1:] != "\n":
            raise _Ended(
                "cf-agent closed the conversation " + ("in the middle of a line" if line else "without terminate")
            )
        if self._record is not None:
            self._note(self._record, "<", line)
        return str(line[:-1])

    def hold(self, text: str) -> None:
        """Write text together with what is written next."""
        self._held.append(text)

    def write(self, text: str) -> None:
        """Write all of text, even if a signal comes: nothing is left half-written."""
        text = "".join([*self._held, text])
        self._held.clear()
        if self._record is not None:
            self._note(self._record, ">", text)
        rest: Any = text if self._text_out else _encoded(text)
        self._writing = True
        try:
            while rest:
                rest = rest[self._out.write(rest) :]
            self._out.flush()
        except (OSError, ValueError) as error:
            raise _Ended(f"cf-agent does not listen any more: {error}") from error
        self._writing = False
        if self._stopped_by:
            raise _Ended(f"ended by {self._stopped_by}")

    def stop(self, signum: int, _frame: object) -> None:
        """Signal handler: end now, or once the answer being written is out; a second signal ends in any case."""
        again, self._stopped_by = self._stopped_by, signal.Signals(signum).name
        if again or not self._writing:
            raise _Ended(f"ended by {self._stopped_by}")

    def _note(self, record: IO[bytes], mark: str, text: str) -> None:
        try:
            record.write(_encoded("".join(f"{mark} {line}\n" for line in text[:-1].split("\n"))))
        except OSError:  # a full disk costs the record, not the promises
            self._record = None


def _logs(level: str) -> Callable[[PromiseModule, object], None]:
    def log(self: PromiseModule, message: object) -> None:
        self._log(level, message)

    return log


class PromiseModule:
    """Derive from it, override hooks, call start(). One process serves all promises of one agent run, in order."""

    # True in a module that does nothing and says "Should ..." when the attribute action_policy is "warn" or "nop".
    # Only such a module is asked at all in a dry run.
    handles_action_policy = False

    def __init__(
        self, name: str = "default_module_name", version: str = "0.0.0", record_file_path: str | None = None
    ) -> None:
        """record_file_path: the conversation is appended there, agent's lines marked "< ", ours "> "."""
        self.name = name
        self.version = version
        self._declared: dict[str, _Attribute] = {}
        self._log_level = "info"
        self._channel: _Channel | None = None
        self._record = open(record_file_path, "ab", buffering=0) if record_file_path else None  # noqa: SIM115

    def start(self, in_file: IO[Any] | None = None, out_file: IO[Any] | None = None) -> NoReturn:
        """Serve cf-agent until it says terminate. Ends with SystemExit: 0, or a message when it ended otherwise."""
        strays, stdout = _Strays(self.log_verbose), sys.stdout
        try:
            channel = self._channel = _Channel(in_file or _private(0), out_file or _private(1), self._record)
        except OSError as error:  # no stdin or stdout, or no descriptor left
            sys.exit(f"{self.name}: {error}")
        handlers = _take_signals(channel.stop)
        sys.stdout = strays
        try:
            self._greet(channel)
            while self._serve(channel, strays):
                pass
        except (_Ended, ProtocolError) as end:
            sys.exit(f"{self.name}: {end}")
        finally:
            sys.stdout, self._channel = stdout, None
            for signum, handler in handlers:
                signal.signal(signum, handler)
        sys.exit(0)

    def _greet(self, channel: _Channel) -> None:
        words = channel.read_line().split(" ")
        if len(words) < 3 or not words[2].startswith("v"):
            raise ProtocolError("started by something that is not cf-agent: promise modules are run by cf-agent alone")
        while channel.read_line():
            pass
        flags = "json_based action_policy" if self.handles_action_policy else "json_based"
        channel.write(f"{self.name} {self.version} v1 {flags}\n\n")

    def _serve(self, channel: _Channel, strays: _Strays) -> bool:
        """Answer the next request; False after terminate."""
        line = channel.read_line() or channel.read_line()  # an empty line ends each request
        if not line:
            return True
        broken = None
        try:
            answer = self._answer(_request(line))
        except ProtocolError as error:  # the agent waits for an answer all the same
            self.log_critical(f"{self.name}: {error}")
            answer = {"result": Result.ERROR}
            broken = None if isinstance(error, _Unreadable) else error
        strays.end_line()
        channel.write(_ENCODE(answer) + "\n\n")
        if broken:
            raise broken
        return answer.get("operation") != "terminate"

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request. The safety net: whatever a hook raises, that promise gets error with the reason."""
        operation, level = request.get("operation"), request.get("log_level")
        self._log_level = level if isinstance(level, str) and level in _RANKS else "info"
        serve = _OPERATIONS.get(operation) if isinstance(operation, str) else None
        if serve is None:
            raise ProtocolError(f"not a request: unknown operation {operation!r:.200}")
        try:
            return {"operation": operation, **serve(self, request)}
        except _Ended:
            raise
        except _Unreadable as error:
            self.log_critical(f"{self.name}: {error}")
        except BaseException as error:  # noqa: BLE001 - the one net, so that no bug ends the process
            self.log_critical(f"{_told(error)} (bug in promise module {self.name}, run with --debug for a traceback)")
            self._log_traceback()
        return {"operation": operation, "result": Result.ERROR}

    def _init(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"result": _result(self.protocol_init(None))}

    def _terminate(self, _request: dict[str, Any]) -> dict[str, Any]:
        return {"result": _result(self.protocol_terminate())}

    def _validate(self, request: dict[str, Any]) -> dict[str, Any]:
        metadata = _metadata(request)
        try:
            promiser, attributes = self._prepared(request)
            self.validate_attributes(promiser, attributes, metadata)
            returned = self.validate_promise(promiser, attributes, metadata)
        except ValidationError as error:
            self.log_error(f"{error} for {_named(request)}")
            return {"promiser": request["promiser"], "result": Result.INVALID}
        if returned is not None:
            raise TypeError(
                f"validate_promise() returned {returned!r}, it must return nothing and raise ValidationError"
            )
        return {"promiser": request["promiser"], "result": Result.VALID}

    def _evaluate(self, request: dict[str, Any]) -> dict[str, Any]:
        promiser, attributes = self._prepared(request)
        returned = self.evaluate_promise(promiser, attributes, _metadata(request))
        result, classes = (returned, None) if isinstance(returned, str) else _pair(returned)
        if result not in _OUTCOMES:
            raise TypeError(f"evaluate_promise() returned {returned!r}, which is no result of an evaluation")
        answer = {"promiser": request["promiser"], "result": result}
        return {**answer, "result_classes": classes} if classes else answer

    def _prepared(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        attributes = request.get("attributes", {})
        if not isinstance(request.get("promiser"), str) or not isinstance(attributes, dict):
            raise _Unreadable("a request without a promiser, or whose attributes are no object")
        for name, attribute in self._declared.items():
            if isinstance(attributes.get(name), str):
                attributes[name] = _converted(attributes[name], attribute.typing)
        return self.prepare_promiser_and_attributes(request["promiser"], attributes)

    # ---- what modules declare and call

    def add_attribute(
        self,
        name: str,
        typing: type,
        default: Any = None,
        required: bool = False,
        default_to_promiser: bool = False,
        validator: Callable[[Any], object] | None = None,
    ) -> None:
        """Declare an attribute; once one is declared, others than these and the common ones make a promise invalid."""
        required = required and not default_to_promiser
        self._declared[name] = _Attribute(typing, default, required, default_to_promiser, validator)

    def create_attribute_dict(self, promiser: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """The attributes with defaults for the missing ones. Raises ValidationError for what was not declared so."""
        for name, attribute in self._declared.items():
            if attribute.required and name not in attributes:
                raise ValidationError(f"Missing required attribute '{name}'")
        for name, value in attributes.items():
            if name in self._declared:
                _check(name, value, self._declared[name])
            elif name not in COMMON_ATTRIBUTES:
                raise ValidationError(f"Unknown attribute '{name}'")
        from copy import copy

        missing = {
            name: promiser if declared.default_to_promiser else copy(declared.default)
            for name, declared in self._declared.items()
            if name not in attributes
        }
        return {**attributes, **missing}

    def create_attribute_object(self, promiser: str, attributes: Mapping[str, Any]) -> AttributeObject:
        """As create_attribute_dict(), as an object."""
        return AttributeObject(self.create_attribute_dict(promiser, attributes))

    log_critical, log_error, log_warning = _logs("critical"), _logs("error"), _logs("warning")
    log_notice, log_info, log_verbose, log_debug = _logs("notice"), _logs("info"), _logs("verbose"), _logs("debug")

    def _log(self, level: str, message: object) -> None:
        unseen = _RANKS[level] > _RANKS[self._log_level]
        if unseen and _RANKS[level] > _ALWAYS_SENT:
            return
        text = str(message)
        line = f"log_{level}={text if text.isprintable() else text.translate(_ESCAPES)}\n"
        if self._channel is None:
            sys.stderr.write(line)
        elif unseen:  # the agent need not wake up for it
            self._channel.hold(line)
        else:
            self._channel.write(line)

    def _log_traceback(self) -> None:
        if self._log_level == "debug":
            import traceback

            for line in traceback.format_exc().splitlines():
                self.log_debug(line)

    # ---- hooks; metadata: promise_type, and filename and line_number where the agent told them

    def protocol_init(self, version: object) -> str:
        return Result.SUCCESS

    def prepare_promiser_and_attributes(self, promiser: str, attributes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Change promiser or attributes before they are validated and evaluated."""
        return promiser, attributes

    def validate_attributes(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> object:
        """Override to do without the checks of what add_attribute() declared."""
        if self._declared:
            self.create_attribute_dict(promiser, attributes)
        return None

    def validate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> object:
        """Raise ValidationError if the promise is wrong, else return nothing."""
        if not self._declared:
            raise NotImplementedError(
                "validate_promise() must be overridden, or attributes declared by add_attribute()"
            )
        return None

    def evaluate_promise(self, promiser: str, attributes: dict[str, Any], metadata: dict[str, Any]) -> object:
        """Keep the promise; return a result or (result, list of classes)."""
        raise NotImplementedError("evaluate_promise() must be overridden")

    def protocol_terminate(self) -> str:
        return Result.SUCCESS


_OPERATIONS = {
    "init": PromiseModule._init,
    "validate_promise": PromiseModule._validate,
    "evaluate_promise": PromiseModule._evaluate,
    "terminate": PromiseModule._terminate,
}


def _request(line: str) -> dict[str, Any]:
    """The request in a line. Raises ProtocolError; _Unreadable for JSON that is sound but that Python will not hold."""
    try:
        request, end = _DECODE(line)
        if line[end:].strip():
            raise ProtocolError(f"not a request, but {line!r:.200}")
        if line.isascii() and "\\u00" in line:
            request = _mended(request)
    except json.JSONDecodeError as error:
        raise ProtocolError(f"not a request, but {line!r:.200} ({error})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, a thousand levels
        raise _Unreadable(f"a request that cannot be read: {_told(error)}") from error
    if not isinstance(request, dict):
        raise ProtocolError(f"not a request, but {line!r:.200}")
    return request


def _mended(value: Any) -> Any:
    r"""Undo cf-agent 3.27's escapes, which write each byte of UTF-8 as a code point of its own (é as \u00c3\u00a9)."""
    if isinstance(value, str):
        try:
            return value.encode("latin-1").decode("utf-8")
        except UnicodeError:
            return value
    if isinstance(value, list):
        return [_mended(element) for element in value]
    if isinstance(value, dict):
        return {_mended(key): _mended(element) for key, element in value.items()}
    return value


def _check(name: str, value: Any, declared: _Attribute) -> None:
    wanted, found = _TYPE_NAMES.get(declared.typing, declared.typing.__name__), _TYPE_NAMES.get(type(value), "null")
    if wanted != found:
        raise ValidationError(f"Attribute '{name}' must be of type {wanted}, not {value!r} ({found})")
    try:
        if declared.validator is not None:
            declared.validator(value)
    except (ValidationError, _Ended):
        raise
    except BaseException as error:
        raise ValidationError(f"Attribute '{name}' has the invalid value {value!r}: {_told(error)}") from error


def _converted(text: str, typing: type) -> Any:
    """The value of a policy's string; the string itself where it is none of that type, for the checks to refuse."""
    if typing is bool:
        return _BOOLEANS.get(text, text)
    try:
        if typing is int:
            return int(text) if text.lstrip("+-").isdecimal() else text
        if typing is float:
            return float(text)
        value = json.loads(text) if typing is dict else text
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, typing) else text


def _pair(returned: Any) -> tuple[Any, list[str]]:
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise TypeError(f"evaluate_promise() returned {returned!r}, not a result or (result, classes)")
    result, classes = returned[0], returned[1] or []
    if not isinstance(classes, (list, tuple)) or not all(isinstance(name, str) for name in classes):
        raise TypeError(f"evaluate_promise() returned {returned!r}, whose classes are no list of strings")
    return result, list(classes)


def _result(returned: Any) -> str:
    if not isinstance(returned, str):
        raise TypeError(f"{returned!r} was returned, which is no result")
    return returned


def _metadata(request: dict[str, Any]) -> dict[str, Any]:
    metadata = {"promise_type": request.get("promise_type")}
    for key in ("filename", "line_number"):
        if key in request:
            metadata[key] = request[key]
    return metadata


def _named(request: dict[str, Any]) -> str:
    where = (
        f" ({request['filename']}:{request['line_number']})" if {"filename", "line_number"} <= request.keys() else ""
    )
    kind = f"{request['promise_type']} promise" if "promise_type" in request else "promise"
    return f"{kind} with promiser '{request['promiser']}'{where}"


def _told(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    except Exception:  # noqa: BLE001 - an exception of a module whose text is another bug
        return type(error).__name__


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a lone surrogate that was written as an escape, not as bytes
        return text.encode("utf-8", "backslashreplace")


def _private(fd: int) -> IO[Any]:
    """The protocol's end of stdin or stdout; what children read there from now on is empty, what they write, stderr."""
    private = os.fdopen(os.dup(fd), "rb") if fd == 0 else os.fdopen(os.dup(fd), "wb", buffering=0)
    other = os.open(os.devnull, os.O_RDONLY) if fd == 0 else os.dup(2)
    os.dup2(other, fd)
    os.close(other)
    return private


def _take_signals(handler: Callable[[int, object], None]) -> list[tuple[int, Any]]:
    try:
        return [(signum, signal.signal(signum, handler)) for signum in (signal.SIGTERM, signal.SIGINT)]
    except ValueError:  # not the main thread: signals are somebody else's
        return []
