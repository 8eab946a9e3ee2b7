"""The CFEngine keys of hosts, by which nodes are enrolled: their files, their digests, what they have signed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from cf_messaging.keys import BadKey, contents

MIN_BITS = 2048  # what cf-key makes


class BadHostKey(Exception):
    """One line: which file, and what is wrong with it."""


class HostKey(NamedTuple):
    """digest: "SHA=<64 hex>", whatever its file is called."""

    digest: str
    modulus: int
    exponent: int

    def has_signed(self, text: bytes, signature: bytes) -> bool:
        """RSASSA-PKCS1-v1_5 with SHA-256."""
        # Imported where it is needed: it takes 8 MB, and most commands read no host key.
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
        from cryptography.hazmat.primitives.hashes import SHA256

        try:
            key = RSAPublicNumbers(self.exponent, self.modulus).public_key()
            key.verify(signature, text, PKCS1v15(), SHA256())
        except (InvalidSignature, ValueError):
            return False
        return True


def read_host_key(path: Path) -> HostKey:
    """Of a public key in PEM. Raises BadHostKey."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(contents(str(path)))
    except OSError as error:
        raise BadHostKey(f"{path} cannot be read: {error.strerror}") from None
    except BadKey as error:
        raise BadHostKey(str(error)) from None
    except (UnsupportedAlgorithm, ValueError):
        raise BadHostKey(f"{path} is no public key in PEM") from None
    if not isinstance(key, RSAPublicKey) or key.key_size < MIN_BITS:
        raise BadHostKey(f"{path} is no RSA key of {MIN_BITS} bits or more")
    numbers = key.public_numbers()
    return HostKey(_digest(numbers.n, numbers.e), numbers.n, numbers.e)


def _digest(modulus: int, exponent: int) -> str:
    """SHA-256 over both."""
    both = (number.to_bytes((number.bit_length() + 7) // 8) for number in (modulus, exponent))
    return f"SHA={hashlib.sha256(b''.join(both)).hexdigest()}"
