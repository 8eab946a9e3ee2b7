"""The host key: pairs that cf-key made, signed with in every way and told as cf-key tells them; files that are none."""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import fcntl
import hashlib
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fuzz
from agent import MODULE_PYTHON, SEARCH_PATH, environment, program
from cf_messaging import host_key
from cf_messaging.host_key import PASS_PHRASE, BadHostKey, digest, sign
from cf_messaging.keys import MAX_FILE_BYTES
from demo import REPOSITORY, make_work_directory
from peers import scaled

TEXT = b"what is signed:\n\0 any bytes, \xff too"
SIZES = (1024, 2048, 4096)
HAS_PACKAGE = find_spec("cryptography") is not None
PACKAGE = pytest.param("_by_package", marks=pytest.mark.skipif(not HAS_PACKAGE, reason="cryptography is not here"))
each_way = pytest.mark.parametrize("way", [PACKAGE, "_by_library", "_by_program"])
GIVEN = "host key files"
TOLD = re.compile("SHA=[0-9a-f]{64}")


# ---- keys


def openssl(*arguments: str | Path) -> bytes:
    command = [program("openssl"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=True, timeout=scaled(60)).stdout


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The private key that cf-key made of this many bits, beside it the public one; in a work directory."""
    made: dict[int, Path] = {}

    def pair(bits: int) -> Path:
        if bits not in made:
            work = make_work_directory(tmp_path_factory.mktemp("host") / "work", program("cf-promises"))
            command = [program("cf-key"), "-T", str(bits)]
            subprocess.run(command, env=environment(work), check=True, capture_output=True, timeout=scaled(120))
            made[bits] = work / "ppkeys/localhost.priv"
        return made[bits]

    return pair


@pytest.fixture
def private(pairs: Callable[[int], Path], tmp_path: Path) -> Path:
    """A copy that a test may spoil: work/ppkeys/localhost.priv, with the public key beside it."""
    folder = tmp_path / "work/ppkeys"
    folder.mkdir(mode=0o700, parents=True)
    folder.parent.chmod(0o700)
    for name in ("localhost.priv", "localhost.pub"):
        shutil.copy(pairs(2048).with_name(name), folder)
    return folder / "localhost.priv"


def numbers(public: Path) -> tuple[int, int]:
    """Modulus and exponent, as openssl tells them."""
    told = openssl("rsa", "-RSAPublicKey_in", "-in", public, "-noout", "-text", "-modulus").decode()
    exponent, modulus = re.search(r"Exponent: (\d+)", told), re.search(r"Modulus=([0-9A-F]+)", told)
    assert exponent and modulus
    return int(modulus[1], 16), int(exponent[1])


def as_bytes(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8, "big")


def check(signature: bytes, public: Path, text: bytes = TEXT) -> None:
    """By RFC 8017, 8.2.2, and where it is there by cryptography."""
    modulus, exponent = numbers(public)
    size = len(as_bytes(modulus))
    hashed = bytes.fromhex("3031300d060960864801650304020105000420") + hashlib.sha256(text).digest()
    padded = b"\0\1" + b"\xff" * (size - 3 - len(hashed)) + b"\0" + hashed
    assert len(signature) == size and pow(int.from_bytes(signature, "big"), exponent, modulus) == int.from_bytes(
        padded, "big"
    )
    if HAS_PACKAGE:
        from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
        from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        key = load_pem_public_key(public.read_bytes())
        assert isinstance(key, RSAPublicKey)
        key.verify(signature, text, PKCS1v15(), SHA256())


def force(way: str, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(host_key, "WAYS", (getattr(host_key, way),))


def refusal(act: Callable[[], object], path: Path) -> str:
    """The text with which a file is refused: one line, which file and what mends it, and nothing that is in it."""
    with pytest.raises(BadHostKey) as caught:
        act()
    text = str(caught.value)
    assert text.startswith(f"{path} ") and "\n" not in text
    assert re.search("cf-key m|install|may$|did not end", text)
    told = "".join(traceback.format_exception(None, caught.value, None)) + repr(caught.value)
    for line in path.read_text("latin-1").split("\n") if path.is_file() and os.access(path, os.R_OK) else ():
        assert line.startswith("-----") or not any(line[at : at + 8] in told for at in range(len(line) - 7))
    return text


# ---- signatures


@each_way
@pytest.mark.parametrize("bits", SIZES)
def test_what_cf_key_made(way: str, bits: int, pairs: Callable[[int], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """A pair of each size that cf-key takes, by each way alone."""
    force(way, monkeypatch)
    check(sign(str(pairs(bits)), TEXT), pairs(bits).with_suffix(".pub"))


PHRASE = ("-passout", f"pass:{PASS_PHRASE.decode()}")
FORMS = {
    "PKCS#1 of an older cf-key": ("rsa", "-traditional", "-des3", *PHRASE),
    "PKCS#1 in AES": ("rsa", "-traditional", "-aes256", *PHRASE),
    "PKCS#8": ("pkcs8", "-topk8", "-nocrypt"),
    "PKCS#8 encrypted": ("pkcs8", "-topk8", *PHRASE),
}


@each_way
@pytest.mark.parametrize("form", FORMS)
def test_other_forms(way: str, form: str, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without CFEngine's pass phrase, in the two formats that there are; with either end of line."""
    force(way, monkeypatch)
    form_of = openssl(*FORMS[form], "-in", private)
    assert (b"ENCRYPTED" in form_of) == ("-passout" in FORMS[form])
    for text in (form_of, form_of.replace(b"\n", b"\r\n")):
        private.write_bytes(text)
        check(sign(str(private), TEXT), private.with_suffix(".pub"))


@each_way
def test_any_text(way: str, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing, and more than any buffer."""
    force(way, monkeypatch)
    for text in (b"", b"\0" * 1_000_000):
        check(sign(str(private), text), private.with_suffix(".pub"), text)


def test_a_relative_path(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that looks like an option of openssl."""
    force("_by_program", monkeypatch)
    monkeypatch.chdir(private.parent)
    private.rename(private.with_name("-help"))
    check(sign("-help", TEXT), private.with_suffix(".pub"))


# ---- as a node has it

NODE = """
import sys
for name in {hidden}:
    sys.modules[name] = None
sys.path.insert(0, {repository!r})
from cf_messaging import host_key
loaded = [name for name in ("cryptography", "ctypes", "hashlib", "subprocess") if sys.modules.get(name)]
assert not loaded, loaded
host_key.WAYS = tuple(way for way in host_key.WAYS if {way!r} in way.__name__)
{act}
"""
SIGN = "print(host_key.digest(sys.argv[1][:-4] + 'pub'), host_key.sign(sys.argv[1], {text!r}).hex())"


def by_node(
    act: str, path: Path, way: str = "", hidden: tuple[str, ...] = ("cryptography",), timeout_s: float = 120
) -> str:
    """What the interpreter of a node prints, in which these modules cannot be imported."""
    code = NODE.format(repository=str(REPOSITORY), hidden=hidden, way=way, act=act)
    command = [MODULE_PYTHON, "-c", code, str(path)]
    env = {"PATH": SEARCH_PATH}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=scaled(timeout_s))
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.mark.parametrize("way", ["", "_by_library", "_by_program"])
def test_a_node(way: str, private: Path) -> None:
    """Its Python, without cryptography; importing the file loads nothing that is not needed at once."""
    told, signature = by_node(SIGN.format(text=TEXT), private, way).split()
    assert told == digest(str(private.with_suffix(".pub")))
    check(bytes.fromhex(signature), private.with_suffix(".pub"))


def test_a_node_whose_python_has_no_ctypes(private: Path) -> None:
    """The program is left."""
    _, signature = by_node(SIGN.format(text=TEXT), private, hidden=("cryptography", "_ctypes")).split()
    check(bytes.fromhex(signature), private.with_suffix(".pub"))


LEAK = """
def pages():
    return int(open("/proc/self/statm").read().split()[1])
def signed(times):
    for _ in range(times):
        try:
            host_key.sign(sys.argv[1], b"text")
        except host_key.BadHostKey:
            pass
signed(1000)
before = pages()
signed(1000)
print(pages() - before)
"""


@pytest.mark.parametrize("phrase", [PASS_PHRASE.decode(), "x"])
def test_nothing_leaks(phrase: str, private: Path, pairs: Callable[[int], Path]) -> None:
    """A thousand signatures by libcrypto, or a thousand keys that are refused, take no memory."""
    small = pairs(1024)
    private.write_bytes(openssl("rsa", "-traditional", "-aes256", "-passout", f"pass:{phrase}", "-in", small))
    assert int(by_node(LEAK, private, "_by_library")) * os.sysconf("SC_PAGESIZE") < 1 << 18


# ---- ways


def hide_package(patch: pytest.MonkeyPatch) -> None:
    for name in ("cryptography", "cryptography.exceptions"):
        patch.setitem(sys.modules, name, None)


def hide_library(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(host_key, "SONAMES", ("libcrypto.so.of-nobody",))
    patch.setattr(ctypes.util, "find_library", lambda name: None)


def hide_program(patch: pytest.MonkeyPatch, folder: Path) -> None:
    empty = folder / "empty"
    empty.mkdir()
    patch.setenv("PATH", str(empty))


def test_one_after_the_other(private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there leaves it to the next; where nothing is left, the text tells what to install."""
    public = private.with_suffix(".pub")
    hide_package(monkeypatch)
    check(sign(str(private), TEXT), public)
    hide_library(monkeypatch)
    check(sign(str(private), TEXT), public)
    hide_program(monkeypatch, tmp_path)
    assert "install its library, its program or" in refusal(lambda: sign(str(private), TEXT), private)


def test_by_its_usual_name_alone(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A libcrypto of a version that this file does not know is found too."""
    force("_by_library", monkeypatch)
    monkeypatch.setattr(host_key, "SONAMES", ())
    check(sign(str(private), TEXT), private.with_suffix(".pub"))


def loaded(name: str) -> Path:
    """Where a library is that this process has."""
    ctypes.CDLL(name)
    (found,) = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if f"/{name}" in line}
    return Path(found)


@pytest.fixture
def of_cfengine(private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work directory with a libcrypto and an openssl of its own; there are no others."""
    work = private.parent.parent
    for folder in ("lib", "bin"):
        (work / folder).mkdir(mode=0o755)
    (work / "lib/libcrypto.so.of-nobody").symlink_to(loaded("libcrypto.so.3"))
    (work / "bin/openssl").symlink_to(program("openssl"))
    hide_package(monkeypatch)
    hide_library(monkeypatch)
    hide_program(monkeypatch, tmp_path)
    return work


@pytest.mark.parametrize("way", ["_by_library", "_by_program"])
def test_of_cfengines_own_packages(way: str, of_cfengine: Path, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have OpenSSL in the work directory."""
    force(way, monkeypatch)
    check(sign(str(private), TEXT), private.with_suffix(".pub"))


@pytest.mark.parametrize("way", ["_by_library", "_by_program"])
@pytest.mark.parametrize("where", [".", "lib", "bin", "lib/libcrypto.so.of-nobody", "bin/openssl"])
def test_what_others_can_put_there_is_not_run(
    way: str, where: str, of_cfengine: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library or program that somebody else may write, or may put into its folder."""
    force(way, monkeypatch)
    path = of_cfengine / where
    if path.is_symlink():
        copy = path.resolve()
        path.unlink()
        shutil.copy(copy, path)
    path.chmod(0o775)
    concerned = where == "." or ("lib" in where) == (way == "_by_library")
    if concerned:
        assert "nothing of OpenSSL" in refusal(lambda: sign(str(private), TEXT), private)
    else:
        check(sign(str(private), TEXT), private.with_suffix(".pub"))


def test_a_library_that_lacks_a_function(of_cfengine: Path, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is as if it were not there."""
    library = of_cfengine / "lib/libcrypto.so.of-nobody"
    library.unlink()
    library.symlink_to(loaded("libm.so.6"))
    force("_by_library", monkeypatch)
    assert "nothing of OpenSSL" in refusal(lambda: sign(str(private), TEXT), private)
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: "libcrypto.so.3")
    check(sign(str(private), TEXT), private.with_suffix(".pub"))


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a program openssl of this shell script, and there is no other."""

    def make(script: str) -> None:
        path = tmp_path / "only/openssl"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv("PATH", str(path.parent))

    return make


def test_a_program_that_hangs(stand_in: Callable[[str], None], private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not waited for, and its end is."""
    stand_in("exec /bin/sleep 600")
    force("_by_program", monkeypatch)
    monkeypatch.setattr(host_key, "PROGRAM_S", 0.2)
    assert "openssl did not end in 0.2 s" in refusal(lambda: sign(str(private), TEXT), private)


@pytest.mark.parametrize("script", ["exit 127", "exec /of-nobody/openssl", "kill -9 $$"])
def test_a_program_that_does_not_start(
    script: str, stand_in: Callable[[str], None], private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells nothing of the key."""
    stand_in(script)
    force("_by_program", monkeypatch)
    assert "nothing of OpenSSL" in refusal(lambda: sign(str(private), TEXT), private)


@pytest.mark.parametrize("error", [AttributeError, ImportError, OSError, RuntimeError])
def test_a_package_that_does_not_fit(
    error: type[Exception], private: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a release that is not for the OpenSSL of this machine: the next way is taken."""
    (tmp_path / "cryptography").mkdir()
    (tmp_path / "cryptography/__init__.py").write_text(f"raise {error.__name__}('undefined symbol')\n")
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
            patch.delitem(sys.modules, name)
        patch.syspath_prepend(tmp_path)
        signature = sign(str(private), TEXT)
    check(signature, private.with_suffix(".pub"))


# ---- private keys that are none


def cut(path: Path) -> None:
    """Sound PEM of the first half."""
    lines = path.read_text().split("\n")
    path.write_text("\n".join([lines[0], *lines[1:12], *lines[-2:]]))


SPOILED: dict[str, Callable[[Path], object]] = {
    "other pass phrase": lambda path: path.write_bytes(
        openssl("rsa", "-traditional", "-aes256", "-passout", "pass:x", "-in", path)
    ),
    "other pass phrase in PKCS#8": lambda path: path.write_bytes(
        openssl("pkcs8", "-topk8", "-passout", "pass:x", "-in", path)
    ),
    "cut": cut,
    "of another kind": lambda path: path.write_bytes(
        openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    ),
    "of another kind, encrypted": lambda path: path.write_bytes(
        openssl("genpkey", "-algorithm", "ED25519", "-aes256", "-pass", PHRASE[1])
    ),
    "too short to sign": lambda path: path.write_text(short_key()),
}
UNREADABLE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a folder": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "empty": Path.touch,
    "huge": lambda path: path.write_bytes(b" " * (MAX_FILE_BYTES + 1)),
    "large": lambda path: path.write_bytes(b"A" * MAX_FILE_BYTES),
    "no text": lambda path: path.write_bytes(bytes(range(256))),
}


def short_key() -> str:
    """Of 234 bits, less than a hash takes: of two Mersenne primes."""
    p, q, e = 2**127 - 1, 2**107 - 1, 65537
    d = pow(e, -1, (p - 1) * (q - 1))
    values = (0, p * q, e, d, p, q, d % (p - 1), d % (q - 1), pow(q, -1, p))
    return pem("RSA PRIVATE KEY", der(0x30, b"".join(map(integer, values))))


def der(tag: int, content: bytes) -> bytes:
    length = len(content)
    size = bytes([length]) if length < 0x80 else bytes([0x80 + len(as_bytes(length))]) + as_bytes(length)
    return bytes([tag]) + size + content


def integer(value: int) -> bytes:
    return der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def pem(label: str, content: bytes) -> str:
    text = base64.encodebytes(content).decode()
    return f"-----BEGIN {label}-----\n{text}-----END {label}-----\n"


@each_way
@pytest.mark.parametrize("kind", SPOILED)
def test_a_key_that_nobody_can_use(way: str, kind: str, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way says the same of it."""
    SPOILED[kind](private)
    force(way, monkeypatch)
    text = refusal(lambda: sign(str(private), TEXT), private)
    encrypted = "has another pass phrase than CFEngine's, " if "phrase" in kind or "encrypted" in kind else ""
    assert f"{private} {encrypted}is damaged, or is no RSA private key: put back" in text


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("act", [digest, lambda path: sign(path, TEXT)], ids=["digest", "sign"])
def test_no_file_of_a_key(kind: str, act: Callable[[str], object], tmp_path: Path) -> None:
    """It is neither waited for nor read without end."""
    path = tmp_path / "localhost"
    UNREADABLE[kind](path)
    text = refusal(lambda: act(str(path)), path)
    wanted = {"missing": "is not there: cf-key makes it", "huge": f"is larger than {MAX_FILE_BYTES} bytes"}
    assert wanted.get(kind, "cannot be read" if "folder" in kind or "itself" in kind else "is no") in text


@pytest.mark.parametrize(
    "label", ["RSA PUBLIC KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY", "DSA PRIVATE KEY", "CERTIFICATE", ""]
)
def test_another_pem_is_no_private_key(label: str, private: Path) -> None:
    """Whatever is in it; and not one block beside another."""
    private.write_text(private.read_text().replace("RSA PRIVATE KEY", label))
    assert "is no RSA private key in PEM" in refusal(lambda: sign(str(private), TEXT), private)


def test_white_space_without_end(private: Path) -> None:
    """It is passed over in no time: a pattern with two ways to do so takes half a minute."""
    private.write_bytes(b"-----BEGIN RSA PRIVATE KEY-----".ljust(MAX_FILE_BYTES))
    act = "try:\n    host_key.sign(sys.argv[1], b'')\nexcept host_key.BadHostKey as error:\n    print(error)"
    assert "is no RSA private key in PEM" in by_node(act, private, timeout_s=10)


def test_one_block_alone(private: Path) -> None:
    """Of two keys in a file it is not for us to choose."""
    private.write_text(private.read_text() * 2 + "\n")
    assert "is no RSA private key" in refusal(lambda: sign(str(private), TEXT), private)


def test_who_may_not_read_it(private: Path) -> None:
    """The text says so, and nothing of OpenSSL."""
    private.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        with pytest.raises(BadHostKey, match=r"cannot be read: Permission denied: the user of cf-agent may$"):
            sign(str(private), TEXT)
    finally:
        os.seteuid(user)


def test_a_bad_key_is_bad_for_all(
    private: Path, stand_in: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once one way was there, no other is tried."""
    SPOILED["other pass phrase"](private)
    stand_in(f"> {tmp_path}/tried")
    hide_package(monkeypatch)
    assert "has another pass phrase" in refusal(lambda: sign(str(private), TEXT), private)
    assert not (tmp_path / "tried").exists()
    hide_library(monkeypatch)
    sign(str(private), TEXT)
    assert (tmp_path / "tried").exists()


def test_no_error_is_left_behind(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module ssl would take it for one of its own, where it has the same libcrypto."""
    force("_by_library", monkeypatch)
    library = ctypes.CDLL(host_key.SONAMES[0])
    library.ERR_peek_error.restype = ctypes.c_ulong
    for kind in ("other pass phrase", "of another kind"):
        SPOILED[kind](private)
        refusal(lambda: sign(str(private), TEXT), private)
        assert library.ERR_peek_error() == 0
        openssl("genrsa", "-out", private)


def on_terminal(command: list[str]) -> tuple[int, bytes]:
    """The exit status of a process that has a terminal of its own, and what it wrote there."""
    ours, its = pty.openpty()
    try:
        ended = subprocess.run(
            command,
            env={"PATH": SEARCH_PATH},
            stdin=its,
            stdout=its,
            stderr=its,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            check=False,
            timeout=scaled(60),
        )
        os.set_blocking(ours, False)
        try:
            return ended.returncode, os.read(ours, 65536)
        except BlockingIOError:
            return ended.returncode, b""
    finally:
        os.close(ours)
        os.close(its)


@pytest.mark.parametrize("way", ["_by_package", "_by_library", "_by_program"])
@pytest.mark.parametrize("phrase", [PASS_PHRASE.decode(), "x"])
def test_nobody_is_asked_for_a_pass_phrase(way: str, phrase: str, private: Path) -> None:
    """Where somebody sits at a terminal, as who runs cf-agent by hand, nothing is written there and nothing awaited."""
    private.write_bytes(openssl("rsa", "-traditional", "-aes256", "-passout", f"pass:{phrase}", "-in", private))
    act = "try:\n    host_key.sign(sys.argv[1], b'')\nexcept host_key.BadHostKey:\n    sys.exit(3)"
    code = NODE.format(repository=str(REPOSITORY), hidden=(), way=way, act=act)
    python = sys.executable if way == "_by_package" and HAS_PACKAGE else MODULE_PYTHON
    assert on_terminal([python, "-c", code, str(private)]) == (3 if phrase == "x" or nothing(way) else 0, b"")


def nothing(way: str) -> bool:
    return way == "_by_package" and not HAS_PACKAGE


# ---- digests


def spki(public: Path) -> bytes:
    return openssl("rsa", "-RSAPublicKey_in", "-in", public, "-pubout")


@pytest.mark.parametrize("bits", SIZES)
def test_the_digest_is_that_of_cf_key(bits: int, pairs: Callable[[int], Path], tmp_path: Path) -> None:
    """SHA-256 of what cf-key takes the digest of: CFEngine Community's own is MD5."""
    public = pairs(bits).with_suffix(".pub")
    hashed = b"".join(map(as_bytes, numbers(public)))
    command = [program("cf-key"), "-p", str(public)]
    told = subprocess.run(command, env=environment(public.parent.parent), capture_output=True, text=True, check=True)
    kind, _, value = told.stdout.strip().partition("=")
    assert hashlib.new({"MD5": "md5", "SHA": "sha256"}[kind], hashed).hexdigest() == value
    assert digest(str(public)) == f"SHA={hashlib.sha256(hashed).hexdigest()}"
    other = tmp_path / "other.pub"
    for text in (spki(public), public.read_bytes().replace(b"\n", b"\r\n"), b"\n" + public.read_bytes() + b"\n\n"):
        other.write_bytes(text)
        assert digest(str(other)) == digest(str(public))


MODULUS, EXPONENT = 2**1023 + 9, 65537
SOUND = der(0x30, integer(MODULUS) + integer(EXPONENT))
OF_RSA = bytes.fromhex("300d06092a864886f70d0101010500")
OF_RSA_PSS = bytes.fromhex("300d06092a864886f70d01010a0500")


def wrapped(inner: bytes, algorithm: bytes = OF_RSA, unused: bytes = b"\0") -> str:
    return pem("PUBLIC KEY", der(0x30, algorithm + der(0x03, unused + inner)))


def test_what_the_next_test_spoils_is_sound(tmp_path: Path) -> None:
    """Both forms."""
    path = tmp_path / "sound.pub"
    wanted = hashlib.sha256(as_bytes(MODULUS) + as_bytes(EXPONENT)).hexdigest()
    for text in (pem("RSA PUBLIC KEY", SOUND), wrapped(SOUND)):
        path.write_text(text)
        assert digest(str(path)) == f"SHA={wanted}"


NO_KEYS = {
    "another label": pem("PUBLIC KEY", SOUND),
    "the other label": wrapped(SOUND).replace("PUBLIC", "RSA PUBLIC"),
    "a private label": pem("RSA PRIVATE KEY", SOUND),
    "labels that differ": pem("RSA PUBLIC KEY", SOUND).replace("END RSA", "END"),
    "no end": pem("RSA PUBLIC KEY", SOUND).partition("-----END")[0],
    "no body": pem("RSA PUBLIC KEY", b""),
    "text in front": "my key\n" + pem("RSA PUBLIC KEY", SOUND),
    "text behind": pem("RSA PUBLIC KEY", SOUND) + "my key\n",
    "twice": pem("RSA PUBLIC KEY", SOUND) * 2,
    "a header": pem("RSA PUBLIC KEY", SOUND).replace("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n", 1),
    "no base64": pem("RSA PUBLIC KEY", SOUND).replace("\n", "\n!", 1),
    "base64 with bits that are not zero": pem("RSA PUBLIC KEY", SOUND + b"\0").replace("A==", "B=="),
    "base64 cut off": pem("RSA PUBLIC KEY", SOUND).replace("\n", "\nA", 1),
    "more behind": pem("RSA PUBLIC KEY", SOUND + b"\0"),
    "more inside": pem("RSA PUBLIC KEY", der(0x30, integer(MODULUS) + integer(EXPONENT) + integer(3))),
    "cut off": pem("RSA PUBLIC KEY", SOUND[:-1]),
    "one number": pem("RSA PUBLIC KEY", der(0x30, integer(MODULUS))),
    "no sequence": pem("RSA PUBLIC KEY", der(0x31, SOUND[3:])),
    "no integer": pem("RSA PUBLIC KEY", der(0x30, der(0x04, as_bytes(MODULUS)) + integer(EXPONENT))),
    "a length without end": pem("RSA PUBLIC KEY", b"\x30\x80" + SOUND[3:]),
    "a length in too many bytes": pem("RSA PUBLIC KEY", b"\x30\x82\0" + SOUND[2:]),
    "a short length in the long form": pem(
        "RSA PUBLIC KEY", der(0x30, integer(MODULUS) + b"\2\x81\3" + as_bytes(EXPONENT))
    ),
    "a length of 127 bytes": pem("RSA PUBLIC KEY", b"\x30\xff" + b"\xff" * 127 + SOUND),
    "a length and nothing": pem("RSA PUBLIC KEY", b"\x30\x82"),
    "a tag and nothing": pem("RSA PUBLIC KEY", b"\x30"),
    "a zero too many": pem("RSA PUBLIC KEY", der(0x30, integer(MODULUS) + b"\2\4\0" + as_bytes(EXPONENT))),
    "a negative modulus": pem("RSA PUBLIC KEY", der(0x30, der(2, as_bytes(MODULUS)) + integer(EXPONENT))),
    "an even modulus": pem("RSA PUBLIC KEY", der(0x30, integer(MODULUS + 1) + integer(EXPONENT))),
    "no modulus": pem("RSA PUBLIC KEY", der(0x30, der(2, b"") + integer(EXPONENT))),
    "a modulus of zero": pem("RSA PUBLIC KEY", der(0x30, integer(0) + integer(EXPONENT))),
    "an even exponent": pem("RSA PUBLIC KEY", der(0x30, integer(MODULUS) + integer(EXPONENT - 1))),
    "an exponent of 1": pem("RSA PUBLIC KEY", der(0x30, integer(MODULUS) + integer(1))),
    "another algorithm": wrapped(SOUND, OF_RSA_PSS),
    "an algorithm without its NULL": wrapped(SOUND, der(0x30, OF_RSA[2:-2])),
    "bits that do not fill bytes": wrapped(SOUND, unused=b"\1"),
    "no bits": wrapped(b"", unused=b""),
    "more behind the bits": pem("PUBLIC KEY", der(0x30, OF_RSA + der(0x03, b"\0" + SOUND) + b"\5\0")),
}


@pytest.mark.parametrize("kind", NO_KEYS)
def test_no_public_key(kind: str, tmp_path: Path) -> None:
    """Nothing is passed over, so that one key has one digest."""
    path = tmp_path / "localhost.pub"
    path.write_text(NO_KEYS[kind])
    assert "is no RSA public key in PEM: put back" in refusal(lambda: digest(str(path)), path)


def test_keys_of_another_kind(private: Path) -> None:
    """As openssl makes them; and the private key in place of the public one."""
    public = private.with_suffix(".pub")
    public.write_bytes(openssl("genpkey", "-algorithm", "ED25519"))
    for text in (openssl("pkey", "-in", public, "-pubout"), private.read_bytes()):
        public.write_bytes(text)
        assert "is no RSA public key in PEM" in refusal(lambda: digest(str(public)), public)


@st.composite
def almost(draw: st.DrawFn) -> bytes:
    """A public key file with changes in its DER or in its text, mostly one."""
    wrap = draw(st.booleans())
    content = SOUND if not wrap else der(0x30, OF_RSA + der(0x03, b"\0" + SOUND))
    for _ in range(draw(st.sampled_from([0, 1, 1, 1, 2, 5]))):
        content = draw(changed(content))
    text = pem("PUBLIC KEY" if wrap else "RSA PUBLIC KEY", content).encode()
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        text = draw(changed(text))
    return text


def changed(data: bytes) -> st.SearchStrategy[bytes]:
    """With up to three bytes replaced, taken out or put in, most often near one of the ends."""
    where = st.integers(0, min(40, len(data))) | st.integers(0, len(data)) | st.just(len(data))
    return st.builds(
        lambda at, out, new: data[:at] + new + data[at + out :], where, st.integers(0, 3), st.binary(max_size=3)
    )


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written anew by each example."""
    return tmp_path_factory.mktemp("fuzz") / "localhost.pub"


@pytest.mark.fuzz
@given(data=almost() | st.binary(max_size=300))
@example(b"")
@example(wrapped(SOUND).encode())
def test_any_file_has_a_digest_or_is_refused(public: Path, data: bytes) -> None:
    """And what has one is a key for cryptography too, and the same one, unless that finds it too weak."""
    fuzz.watch()
    public.write_bytes(data)
    try:
        told = digest(str(public))
    except BadHostKey as error:
        told = str(error)
    known = TOLD.fullmatch(told)
    fuzz.count(GIVEN, "with a digest" if known else "refused")
    assert told == (by_package(data, told) if known else f"{public} is no RSA public key in PEM: {host_key._MEND}")


def by_package(data: bytes, otherwise: str) -> str:
    """The digest, as far as cryptography has an opinion."""
    if not HAS_PACKAGE:
        return otherwise
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(data)
    except ValueError:
        return otherwise
    assert isinstance(key, RSAPublicKey)
    found = key.public_numbers()
    return f"SHA={hashlib.sha256(as_bytes(found.n) + as_bytes(found.e)).hexdigest()}"
