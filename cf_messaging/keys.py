"""CURVE keys: the files that hold them, and who is let in by his key. Outside of this file nobody reads a secret.

A key is 32 bytes; people and policy see it as 64 hex digits. A file is a ZeroMQ certificate, as pyzmq and CZMQ write
them: lines `public-key = "..."` and, in the owner's alone, `secret-key = "..."`, in Z85.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections import namedtuple
from struct import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

KEY_BYTES = 32
MAX_FILE_BYTES = 65536
SUFFIX = ".key"  # of the certificates in a directory
_HEX = re.compile("[0-9a-fA-F]{64}")
_METADATA = r'^[ \t]+([a-z_]+)[ \t]*=[ \t]*"([^"\n]*)"[ \t\r]*$'
_LINE = r'^[ \t]*%s[ \t]*=[ \t]*"?([!-~]{40})"?[ \t\r]*$'
# ZeroMQ's RFC 32.
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}


class BadKey(Exception):
    """One line: which key or file, what is wrong with it, and where known what mends it."""


class NotNow(Exception):
    """Who asks too often to come in may ask again later."""


class Pair:
    """Of a CURVE socket; bytes. What shows it shows the public key alone. replaces: the key that was here before, in
    hex, empty if there was none.
    """

    __slots__ = ("public", "replaces", "secret")

    def __init__(self, public: bytes, secret: bytes, replaces: str = "") -> None:
        self.public = public
        self.secret = secret
        self.replaces = replaces

    def __repr__(self) -> str:
        return f"<key {self.public.hex()}>"


# ---- text


def from_hex(text: object) -> bytes:
    """Raises ValueError."""
    if isinstance(text, str) and _HEX.fullmatch(text):
        return bytes.fromhex(text)
    hint = ": it is in Z85, `cf-messaged keys show` tells the same in hex" if _is_z85(text) else ""
    raise ValueError(f"no key of 64 hex digits{hint}")


def _is_z85(text: object) -> bool:
    return isinstance(text, str) and len(text) == 40 and all(digit in _VALUES for digit in text)


def _z85(key: bytes) -> str:
    text = ""
    for number in unpack(">8I", key):
        text += "".join(_DIGITS[number // 85**place % 85] for place in (4, 3, 2, 1, 0))
    return text


def _from_z85(text: str) -> bytes:
    """Raises ValueError."""
    numbers = []
    for start in range(0, 40, 5):
        number = 0
        for digit in text[start : start + 5]:
            number = number * 85 + _VALUES[digit]
        numbers.append(number)
    if max(numbers) >= 2**32:
        raise ValueError("no Z85")
    return pack(">8I", *numbers)


def certificate(keys: bytes | Sequence[bytes], about: str = "", **metadata: str) -> str:
    """The text of a file that may be shown to everybody, of one key, or of several while one is replaced.

    about: a comment of one line; metadata: what else it tells, text without quotation marks and control characters.
    """
    told = "".join(f'    {name} = "{value}"\n' for name, value in metadata.items() if value)
    lines = "".join(f'    public-key = "{_z85(key)}"\n' for key in ([keys] if isinstance(keys, bytes) else keys))
    return f"#   {about or 'A public key of ZeroMQ CURVE'}\n\nmetadata\n{told}curve\n{lines}"


# ---- files


def public_key(path: str) -> bytes:
    """Of a certificate. Raises BadKey."""
    return read_certificate(path)[0]


def public_keys(path: str) -> list[bytes]:
    """Of a certificate that may have several. Raises BadKey."""
    return _all_found("public", _public_text(path), path)


def server_keys(told: Sequence[bytes | str]) -> list[bytes]:
    """Of a listener that has one of them. told: keys, and paths of certificates. Raises BadKey."""
    found = [key for each in told for key in ([each] if isinstance(each, bytes) else public_keys(each))]
    return list(dict.fromkeys(found))


def read_certificate(path: str) -> tuple[bytes, dict[str, str]]:
    """Its key, and its metadata by name. Raises BadKey."""
    text = _public_text(path)
    return _found("public", text, path), _metadata(text)


def _metadata(text: str) -> dict[str, str]:
    """What `certificate` told beside the key."""
    return dict(re.findall(_METADATA, text.partition("\ncurve\n")[0], re.MULTILINE))


def _public_text(path: str) -> str:
    try:
        return contents(path).decode("utf-8", "replace")
    except OSError as error:
        raise BadKey(f"{path} cannot be read: {error.strerror}") from None


def directory_keys(path: str) -> dict[bytes, str]:
    """Of all certificates in a directory, NAME.key, the name; of NAME~ANYTHING.key too. Raises BadKey."""
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(SUFFIX))
    except OSError as error:
        raise BadKey(f"directory of keys {path}: {error.strerror}") from None
    return {public_key(os.path.join(path, name)): name[: -len(SUFFIX)].partition("~")[0] for name in names}


def own_pair(path: str, new: Callable[[], tuple[bytes, bytes]], replaces: str = "") -> Pair:
    """From the owner's file, which is made if there is none. new: as zmq.curve_keypair(); replaces: of a new one, the
    key that it takes the place of. Raises BadKey.
    """
    try:
        if not os.path.lexists(path):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            _check_directory(os.path.dirname(path))
            make_pair(path, new, replaces=replaces)
        return _own(path)
    except OSError as error:
        raise BadKey(f"key_file {path} cannot be read or made: {error.strerror}") from None


def _own(path: str) -> Pair:
    _check_directory(os.path.dirname(path))
    with open(path, "rb", opener=lambda path, flags: _at_once(path, flags | os.O_NOFOLLOW)) as file:
        _check_regular(path, file.fileno())
        _check_private(path, os.fstat(file.fileno()))
        text = _read(path, file.read(MAX_FILE_BYTES + 1))
    return Pair(_found("public", text, path), _found("secret", text, path), _metadata(text).get("replaces", ""))


def new_pair(new: Callable[[], tuple[bytes, bytes]]) -> Pair:
    """That is in no file. new: as zmq.curve_keypair()."""
    public, secret = (_from_z85(key.decode()) for key in new())
    return Pair(public, secret)


def make_pair(path: str, new: Callable[[], tuple[bytes, bytes]], **metadata: str) -> None:
    """Of two who make it together, the first has made it. Raises OSError."""
    public, secret = (key.decode() for key in new())
    text = certificate(_from_z85(public), "The CURVE key of this machine: nobody else may have it", **metadata)
    temporary = write_private(path, f'{text}    secret-key = "{secret}"\n')
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(temporary)


def is_old(path: str, minutes: int) -> bool:
    """Whether the pair in this file was made before that; not if there is none."""
    try:
        return time.time() - os.stat(path).st_mtime > 60 * minutes
    except OSError:
        return False


def write_private(path: str, text: str) -> str:
    """Returns the name of a new file with this text, on disk, that is to take the place of path, whole or not at all.
    It is for the owner of the folder alone, also where root makes it. Raises OSError.
    """
    temporary = f"{path}.{os.getpid()}.new"
    if os.path.lexists(temporary):  # of a process that was killed and had our id
        os.unlink(temporary)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w") as file:
            give_to_owner(os.path.dirname(path), descriptor)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
    except BaseException as error:
        os.unlink(temporary)
        if isinstance(error, OSError) and not error.filename:
            error.filename = path  # which disk is full, say: of a descriptor the system tells no name
        raise
    return temporary


def give_to_owner(folder: str, descriptor: int) -> None:
    """What root makes in a folder, its owner must be able to read."""
    if os.geteuid() == 0:
        owner = os.stat(folder)
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _at_once(path: str, flags: int) -> int:
    """A FIFO does not wait."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def contents(path: str) -> bytes:
    """Of a regular file with a key of whatever kind. Raises BadKey and OSError."""
    with open(path, "rb", opener=_at_once) as file:
        _check_regular(path, file.fileno())
        return _bounded(path, file.read(MAX_FILE_BYTES + 1))


def _read(path: str, data: bytes) -> str:
    return _bounded(path, data).decode("utf-8", "replace")


def _bounded(path: str, data: bytes) -> bytes:
    if len(data) > MAX_FILE_BYTES:
        raise BadKey(f"{path} is larger than {MAX_FILE_BYTES} bytes: no file of a key")
    return data


def _found(which: str, text: str, path: str) -> bytes:
    return _all_found(which, text, path)[0]


def _all_found(which: str, text: str, path: str) -> list[bytes]:
    """One at least. The text is never told: it may be somebody's secret."""
    try:
        found = [_from_z85(key) for key in re.findall(_LINE % f"{which}-key", text, re.MULTILINE)]
    except (KeyError, ValueError):
        found = []
    if not found:
        raise BadKey(f"{path} is no certificate with a {which} key of CURVE")
    return found


def _check_regular(path: str, descriptor: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise BadKey(f"{path} is not a regular file")


def _of_another_user(what: str, path: str, status: os.stat_result) -> BadKey:
    mend = f"run this as that user, or chown {os.geteuid()} {path}"
    return BadKey(f"{what} {path} belongs to user {status.st_uid}: {mend}")


def _check_private(path: str, status: os.stat_result) -> None:
    if status.st_uid != os.geteuid():
        raise _of_another_user("key_file", path, status)
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise BadKey(f"key_file {path} has mode {mode:o}, so others may know it: chmod 600 {path}, or better a new key")


def _check_directory(path: str) -> None:
    """Who may write it could put a key of his own there."""
    status = os.stat(path)
    if status.st_uid not in (0, os.geteuid()):
        raise _of_another_user("directory", path, status)
    if status.st_mode & 0o022:
        raise BadKey(f"directory {path} can be written by others: chmod 700 {path}")


# ---- enrolment: what a node signs with its CFEngine host key

# All text. challenge: of the listener; listener, key: CURVE keys in hex, of both; replaces: what the node's key takes
# the place of, empty if nothing; node: its name; host_key: the digest of its CFEngine key, "SHA=<hex>".
Claim = namedtuple("Claim", "challenge listener key replaces node host_key")


def statement(claim: Claim) -> bytes:
    """What is signed, RSASSA-PKCS1-v1_5 with SHA-256: a line each, none of which has a line break in it."""
    return "\n".join(("cf-messaged enrolment v1", *claim, "")).encode()


# ---- who is let in: ZeroMQ's RFC 27

ZAP_ADDRESS = "inproc://zeromq.zap.01"  # where libzmq asks
# What a handler is asked. address: of the peer. key: bytes of a CURVE client, empty of another mechanism.
Caller = namedtuple("Caller", "domain address mechanism key")
_NOT_ASKED = b"500", b"no request of ZAP 1.0", b""


def answered(frames: Sequence[bytes], admit: Callable[[Caller], str]) -> list[bytes]:
    """The reply to a request, frames of both as RFC 27 has them. admit: the user id of who may come in, empty if
    none is needed; raises PermissionError or NotNow, with a reason, for who may not.
    """
    request = frames[1] if len(frames) > 1 else b""
    status, text, user = _verdict(frames, admit)
    return [b"1.0", request, status, text, user, b""]


def _verdict(frames: Sequence[bytes], admit: Callable[[Caller], str]) -> tuple[bytes, bytes, bytes]:
    if len(frames) < 6 or frames[0] != b"1.0":
        return _NOT_ASKED
    mechanism, credentials = frames[5], frames[6:]
    if mechanism == b"CURVE" and [len(each) for each in credentials] != [KEY_BYTES]:
        return _NOT_ASKED
    key = credentials[0] if mechanism == b"CURVE" else b""
    domain, address, name = (frame.decode("utf-8", "replace") for frame in (frames[2], frames[3], mechanism))
    caller = Caller(domain, address, name, key)
    try:
        return b"200", b"OK", admit(caller).encode()
    except PermissionError as error:
        return b"400", str(error).encode(), b""
    except NotNow as error:
        return b"300", str(error).encode(), b""
