"""The host key of this node: the RSA pair by which CFEngine knows it, as cf-key made it.

The files are PEM, `ppkeys/localhost.pub` and `localhost.priv`. Python's standard library cannot sign, so whatever is
there of OpenSSL does. No message tells anything of what is in the private file.
"""

from __future__ import annotations

import os
import re
from binascii import a2b_base64, b2a_base64

from . import keys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from ctypes import CDLL
    from typing import Any

# No secret: older cf-keys encrypted each private key with it, and cf-agent reads such a key today.
PASS_PHRASE = b"Cfengine passphrase"
SONAMES = ("libcrypto.so.3", "libcrypto.so.1.1")
PROGRAM_S = 2  # that the program openssl may take: it needs hundredths, and a promise has seconds
_PEM = re.compile(rb"\s*-----BEGIN ([A-Z ]+)-----\s(.*)-----END \1-----\s*", re.DOTALL)
_PUBLIC = (b"RSA PUBLIC KEY", b"PUBLIC KEY")
_PRIVATE = (b"RSA PRIVATE KEY", b"PRIVATE KEY", b"ENCRYPTED PRIVATE KEY")
_MEND = "put back the pair that cf-key made, or have cf-key make a new one"


class BadHostKey(Exception):
    """One line: which file, what is wrong with it or what is missing, and what mends it."""


def digest(path: str) -> str:
    """Of a public key file: "SHA=<64 hex>", as `cf-key -p FILE` of CFEngine Enterprise prints it. That of Community
    tells the MD5 of the same bytes. Raises BadHostKey.
    """
    from hashlib import sha256

    return "SHA=" + sha256(b"".join(_numbers(path))).hexdigest()


def sign(path: str, text: bytes) -> bytes:
    """RSASSA-PKCS1-v1_5 with SHA-256 by the private key in this file. Raises BadHostKey."""
    key = _Private(path)
    for way in WAYS:
        signature = way(key, text)
        if signature is not None:
            return signature
    raise BadHostKey(
        f"{path} cannot be signed with, since nothing of OpenSSL is there: install its library, its program or Python's"
        " package cryptography (on Debian libssl3, openssl, python3-cryptography)"
    )


# ---- files


def _contents(path: str) -> bytes:
    try:
        return keys.contents(path)
    except FileNotFoundError:
        raise BadHostKey(f"{path} is not there: cf-key makes it") from None
    except PermissionError as error:
        raise BadHostKey(f"{path} cannot be read: {error.strerror}: the user of cf-agent may") from None
    except OSError as error:
        raise BadHostKey(f"{path} cannot be read: {error.strerror}: {_MEND}") from None
    except keys.BadKey as error:
        raise BadHostKey(f"{error}: {_MEND}") from None


def _block(text: bytes, labels: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """The label, one of these, and the body of a PEM file of nothing else. Raises ValueError."""
    found = _PEM.fullmatch(text)
    if not found or found[1] not in labels or b"-----" in found[2]:
        raise ValueError("no such PEM")
    return found[1], found[2].strip()


class _Private:
    """A private key file as it is, read as far as it takes to tell what it is."""

    __slots__ = ("encrypted", "path", "pem")

    def __init__(self, path: str) -> None:
        self.path = path
        self.pem = _contents(path)
        try:
            label, body = _block(self.pem, _PRIVATE)
        except ValueError:
            raise BadHostKey(f"{path} is no RSA private key in PEM: {_MEND}") from None
        self.encrypted = label == b"ENCRYPTED PRIVATE KEY" or body.startswith(b"Proc-Type: 4,ENCRYPTED")

    def useless(self) -> BadHostKey:
        """Who tried to sign with it could not; what is told does not depend on who that was."""
        why = "has another pass phrase than CFEngine's, is damaged, or" if self.encrypted else "is damaged, or"
        return BadHostKey(f"{self.path} {why} is no RSA private key: {_MEND}")


# ---- the public key: DER, as RFC 8017 (RSAPublicKey) and RFC 5280 (SubjectPublicKeyInfo) have it

_INTEGER, _BITS, _SEQUENCE = 0x02, 0x03, 0x30
_RSA_ENCRYPTION = bytes.fromhex("06092a864886f70d0101010500")


def _numbers(path: str) -> tuple[bytes, bytes]:
    """Modulus and exponent, big-endian without zeros in front. Raises BadHostKey."""
    text = _contents(path)
    try:
        label, body = _block(text, _PUBLIC)
        der = _decoded(b"".join(body.split()))
        return _parsed(der if label == b"RSA PUBLIC KEY" else _inner(der))
    except ValueError:
        raise BadHostKey(f"{path} is no RSA public key in PEM: {_MEND}") from None


def _decoded(base64: bytes) -> bytes:
    """Raises ValueError, also for what a2b_base64() only passes over."""
    der = a2b_base64(base64)
    if b2a_base64(der, newline=False) != base64:
        raise ValueError("no base64")
    return der


def _inner(der: bytes) -> bytes:
    """The RSAPublicKey in a SubjectPublicKeyInfo. Raises ValueError."""
    algorithm, rest = _element(_SEQUENCE, _only(_SEQUENCE, der))
    bits = _only(_BITS, rest)
    if algorithm != _RSA_ENCRYPTION or bits[:1] != b"\0":
        raise ValueError("no RSA")
    return bits[1:]


def _parsed(der: bytes) -> tuple[bytes, bytes]:
    modulus, rest = _element(_INTEGER, _only(_SEQUENCE, der))
    return _odd(modulus), _odd(_only(_INTEGER, rest))


def _odd(content: bytes) -> bytes:
    """Both numbers of RSA are odd and larger than 1. Raises ValueError."""
    # In front a zero only where the next bit is set: without it that would be a negative number.
    if content[:2] < b"\0\x80" or content[0] >= 0x80 or content == b"\1" or not content[-1] & 1:
        raise ValueError("no number of RSA")
    return content.lstrip(b"\0")


def _only(tag: int, data: bytes) -> bytes:
    """The content of the one element that this is. Raises ValueError."""
    content, rest = _element(tag, data)
    if rest:
        raise ValueError("more than one element")
    return content


def _element(tag: int, data: bytes) -> tuple[bytes, bytes]:
    """The content of the first element, and what comes after it. Raises ValueError."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError("another element")
    start, length = 2, data[1]
    if length >= 0x80:
        start += length - 0x80
        length = int.from_bytes(data[2:start], "big")
        if length < 0x80 or data[2] == 0:
            raise ValueError("a length in more bytes than it needs")
    if len(data) < start + length:
        raise ValueError("cut off")
    return data[start : start + length], data[start + length :]


# ---- ways to sign: each gives the signature, or None where it is not there; raises BadHostKey


def _by_package(key: _Private, text: bytes) -> bytes | None:
    try:
        from cryptography.exceptions import InternalError, UnsupportedAlgorithm
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import padding, rsa
    except (ImportError, AttributeError, OSError, RuntimeError):  # not there, or not for the OpenSSL of this machine
        return None
    try:
        private = serialization.load_pem_private_key(key.pem, PASS_PHRASE if key.encrypted else None)
        if isinstance(private, rsa.RSAPrivateKey):
            return private.sign(text, padding.PKCS1v15(), hashes.SHA256())
    except (InternalError, TypeError, UnsupportedAlgorithm, ValueError):
        pass
    raise key.useless()


def _by_library(key: _Private, text: bytes) -> bytes | None:
    library = _libcrypto(key.path)
    if library is None:
        return None
    bio = private = None
    try:
        bio = library.BIO_new_mem_buf(key.pem, len(key.pem))
        # With a pass phrase as the last argument, and without a callback, nobody is asked for one.
        private = library.PEM_read_bio_PrivateKey(bio, None, None, PASS_PHRASE)
        return _signed(library, private, _hashed(text))
    except _Failed:
        raise key.useless() from None
    finally:  # of None both do nothing
        library.EVP_PKEY_free(private)
        library.BIO_free_all(bio)
        library.ERR_clear_error()  # which the module ssl would take for its own


def _by_program(key: _Private, text: bytes) -> bytes | None:
    for program in ("openssl", *_of_cfengine(key.path, "bin/openssl")):
        try:
            status, signature = _ran(program, key.path, _hashed(text))
        except OSError:
            continue
        if status == 0:
            return signature
        if 0 < status < 126:  # else it could not start, for want of a library say, or was killed
            raise key.useless()
    return None


def _ran(program: str, path: str, hashed: bytes) -> tuple[int, bytes]:
    """The exit status of openssl and what it wrote. Raises OSError where it is not there, and BadHostKey."""
    from subprocess import DEVNULL, PIPE, TimeoutExpired, run

    command = [program, "pkeyutl", "-sign", "-inkey", path, "-passin", f"pass:{PASS_PHRASE.decode()}"]
    command += ["-pkeyopt", "rsa_padding_mode:pkcs1", "-pkeyopt", "digest:sha256"]  # of another kind of key it has none
    try:
        ended = run(command, input=hashed, stdout=PIPE, stderr=DEVNULL, timeout=PROGRAM_S, check=False)
    except TimeoutExpired:
        raise BadHostKey(f"{path} cannot be signed with: {program} did not end in {PROGRAM_S} s") from None
    return ended.returncode, ended.stdout


def _hashed(text: bytes) -> bytes:
    from hashlib import sha256

    return sha256(text).digest()


def _of_cfengine(key: str, name: str) -> list[str]:
    """The file of this name in CFEngine's own packages, which are in the work directory of this key: none if it is not
    there, or if others could have put it there.
    """
    work = os.path.dirname(os.path.dirname(os.path.abspath(key)))
    path = os.path.join(work, name)
    return [path] if all(map(_ours, (work, os.path.dirname(path), path))) else []


def _ours(path: str) -> bool:
    try:
        status = os.stat(path)
    except OSError:
        return False
    return status.st_uid in (0, os.geteuid()) and not status.st_mode & 0o022


# ---- libcrypto, of OpenSSL 1.1 and 3


class _Failed(Exception):
    """What a function of libcrypto gave says that it did not succeed."""


def _libcrypto(key: str) -> CDLL | None:
    try:
        from ctypes import CDLL
    except ImportError:  # a Python made without it
        return None
    for name in _libraries(key):
        try:
            return _declared(CDLL(name))
        except (AttributeError, OSError):  # not there, or of a version that lacks something
            pass
    return None


def _libraries(key: str) -> Iterator[str]:
    yield from SONAMES
    for name in SONAMES:
        yield from _of_cfengine(key, f"lib/{name}")
    from ctypes.util import find_library

    found = find_library("crypto")  # starts programs, so it comes last
    if found:
        yield found


def _declared(library: CDLL) -> CDLL:
    """Knows the functions that are needed, and that they may fail. Raises AttributeError where one is missing."""
    from ctypes import POINTER, c_char_p, c_int, c_size_t, c_void_p

    declarations: tuple[tuple[str, Any, list[Any]], ...] = (
        ("BIO_new_mem_buf", c_void_p, [c_char_p, c_int]),
        ("BIO_free_all", None, [c_void_p]),
        ("PEM_read_bio_PrivateKey", c_void_p, [c_void_p, c_void_p, c_void_p, c_char_p]),
        ("EVP_PKEY_free", None, [c_void_p]),
        ("EVP_PKEY_CTX_new", c_void_p, [c_void_p, c_void_p]),
        ("EVP_PKEY_CTX_free", None, [c_void_p]),
        ("EVP_PKEY_CTX_ctrl_str", c_int, [c_void_p, c_char_p, c_char_p]),
        ("EVP_PKEY_sign_init", c_int, [c_void_p]),
        ("EVP_PKEY_sign", c_int, [c_void_p, c_char_p, POINTER(c_size_t), c_char_p, c_size_t]),
        ("ERR_clear_error", None, []),
    )
    for name, result, arguments in declarations:
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
        if result:
            function.errcheck = _checked
    return library


def _checked(result: int | None, function: object, arguments: object) -> int:
    """All that are called give a pointer or 1 if they succeed, and NULL, 0 or less if not."""
    if result is None or result <= 0:
        raise _Failed
    return result


def _signed(library: CDLL, private: int, hashed: bytes) -> bytes:
    """Raises _Failed, also for a key that is not of RSA: it has no such options."""
    from ctypes import byref, c_size_t, create_string_buffer

    context = library.EVP_PKEY_CTX_new(private, None)
    try:
        library.EVP_PKEY_sign_init(context)
        library.EVP_PKEY_CTX_ctrl_str(context, b"rsa_padding_mode", b"pkcs1")
        library.EVP_PKEY_CTX_ctrl_str(context, b"digest", b"sha256")
        length = c_size_t()
        library.EVP_PKEY_sign(context, None, byref(length), hashed, len(hashed))
        signature = create_string_buffer(length.value)
        library.EVP_PKEY_sign(context, signature, byref(length), hashed, len(hashed))
        return signature.raw[: length.value]
    finally:
        library.EVP_PKEY_CTX_free(context)


WAYS = (_by_package, _by_library, _by_program)
