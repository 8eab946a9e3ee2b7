"""Keys in text and in files, against pyzmq's own; who may have a file of keys; who is let in by his key."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import zmq
import zmq.auth
import zmq.utils.z85
from hypothesis import example, given
from hypothesis import strategies as st

import fuzz
from cf_messaging import keys
from cf_messaging.keys import (
    KEY_BYTES,
    MAX_FILE_BYTES,
    BadKey,
    Caller,
    Pair,
    answered,
    certificate,
    directory_keys,
    from_hex,
    own_pair,
    public_key,
)
from demo import REPOSITORY
from peers import scaled

ZEROS = "0" * 40  # Z85 of 32 bytes of zero
a_key = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")


def never() -> tuple[bytes, bytes]:
    """Where a key is there already, none is made."""
    raise AssertionError("a key was made")


def certificates(folder: Path, name: str) -> tuple[Path, Path]:
    """The files of a new key as pyzmq writes them: the public one, and the owner's with mode 600."""
    folder.mkdir(mode=0o700, exist_ok=True)
    public, secret = map(Path, zmq.auth.create_certificates(folder, name))
    secret.chmod(0o600)
    return public, secret


def loaded(path: Path) -> tuple[bytes, bytes | None]:
    """What pyzmq finds in it, in Z85."""
    public, secret = zmq.auth.load_certificate(path)
    return public, secret


@pytest.fixture
def owned(tmp_path: Path) -> Path:
    """A sound file of a key pair, by pyzmq."""
    return certificates(tmp_path / "own", "node")[1]


def refusal(act: Callable[[], object], *secrets: bytes) -> str:
    """The text with which a file is refused: one line, and nowhere a part of a secret, in Z85 or hex."""
    with pytest.raises(BadKey) as caught:
        act()
    told = "".join(traceback.format_exception(None, caught.value, None)) + repr(caught.value)
    for secret in secrets:
        for text in (secret.decode(), zmq.utils.z85.decode(secret).hex()):
            assert not any(text[start : start + 5] in told for start in range(len(text) - 4))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def own_refusal(path: Path, *secrets: bytes) -> str:
    return refusal(lambda: own_pair(str(path), never), *secrets)


# ---- text


@given(a_key)
@example(bytes(KEY_BYTES))
@example(b"\xff" * KEY_BYTES)
def test_z85_is_that_of_pyzmq(key: bytes) -> None:
    """Both ways."""
    text = zmq.utils.z85.encode(key).decode()
    assert keys._z85(key) == text and keys._from_z85(text) == key


@given(a_key)
def test_hex(key: bytes) -> None:
    """64 digits, in either case."""
    assert from_hex(key.hex()) == from_hex(key.hex().upper()) == key


@pytest.mark.parametrize(
    "text", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n", "\u0660" * 64, None, 1, [], b"0" * 64]
)
def test_no_hex(text: object) -> None:
    """The text says what a key is, and nothing of Z85."""
    with pytest.raises(ValueError, match=r"^no key of 64 hex digits$"):
        from_hex(text)


@given(a_key)
@example(bytes(KEY_BYTES))
def test_z85_is_no_hex(key: bytes) -> None:
    """It is known as what it is, and the text says who tells it in hex."""
    with pytest.raises(ValueError, match="Z85, `cf-messaged keys show` tells"):
        from_hex(zmq.utils.z85.encode(key).decode())


@pytest.mark.parametrize("shown", [repr, str, "{}".format, lambda pair: repr([pair]), lambda pair: repr({"a": pair})])
def test_a_pair_shows_its_public_key_alone(shown: Callable[[Pair], str]) -> None:
    """However it comes into a text."""
    public, secret = os.urandom(KEY_BYTES), os.urandom(KEY_BYTES)
    text = shown(Pair(public, secret))
    assert public.hex() in text
    assert secret.hex() not in text and repr(secret) not in text and keys._z85(secret) not in text


# ---- certificates


def test_certificates_of_pyzmq(tmp_path: Path) -> None:
    """The public key is read from either file, the pair from the owner's."""
    public, secret = certificates(tmp_path / "own", "node")
    text, secret_text = loaded(secret)
    assert secret_text is not None
    pair = own_pair(str(secret), never)
    assert (pair.public, pair.secret) == (zmq.utils.z85.decode(text), zmq.utils.z85.decode(secret_text))
    assert public_key(str(public)) == public_key(str(secret)) == pair.public


@given(key=a_key, about=st.sampled_from(["", "of web1.example.org", "Grüße"]))
def test_pyzmq_reads_our_certificates(tmp_path_factory: pytest.TempPathFactory, key: bytes, about: str) -> None:
    """The text that may be shown to everybody, whatever it is about."""
    path = tmp_path_factory.mktemp("shown") / "shown.key"
    path.write_text(certificate(key, about), "utf-8")
    assert loaded(path) == (zmq.utils.z85.encode(key), None)
    assert public_key(str(path)) == key


def test_pyzmq_reads_our_pairs(tmp_path: Path) -> None:
    """The file that is made for the owner."""
    path = tmp_path / "own/node.key"
    pair = own_pair(str(path), zmq.curve_keypair)
    assert loaded(path) == (zmq.utils.z85.encode(pair.public), zmq.utils.z85.encode(pair.secret))
    assert zmq.curve_public(zmq.utils.z85.encode(pair.secret)) == zmq.utils.z85.encode(pair.public)


@pytest.mark.parametrize(
    "line",
    ['public-key = "{}"', "public-key={}", '\tpublic-key\t=\t"{}"\t', '    public-key = "{}"\r', "  public-key = {}  "],
)
def test_other_ways_to_write_a_certificate(tmp_path: Path, line: str) -> None:
    """Blanks, quotes and ends of line differ between programs."""
    key = os.urandom(KEY_BYTES)
    path = tmp_path / "k"
    path.write_bytes(("metadata\ncurve\n" + line.format(keys._z85(key)) + "\n").encode())
    assert public_key(str(path)) == key


# ---- a pair is made once


def test_a_pair_is_made_once(tmp_path: Path) -> None:
    """In a directory of its own, for the owner alone; then it is found, and nothing else lies about."""
    path = tmp_path / "state/messages/node.key"
    pair = own_pair(str(path), zmq.curve_keypair)
    again = own_pair(str(path), never)
    assert (pair.public, pair.secret) == (again.public, again.secret)
    assert path.stat().st_mode & 0o7777 == 0o600 and path.parent.stat().st_mode & 0o7777 == 0o700
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_umask_opens_nothing(tmp_path: Path, umask: int) -> None:
    """The modes are the same under any."""
    before = os.umask(umask)
    try:
        own_pair(str(tmp_path / "messages/node.key"), zmq.curve_keypair)
    finally:
        os.umask(before)
    assert (tmp_path / "messages/node.key").stat().st_mode & 0o7777 == 0o600
    assert (tmp_path / "messages").stat().st_mode & 0o7777 == 0o700


def test_two_make_it_at_the_same_time(tmp_path: Path) -> None:
    """Two processes have seen that there is none: both end with the key of the file."""
    path = tmp_path / "messages/node.key"
    program = (
        "import sys, zmq; from cf_messaging.keys import own_pair\n"
        "def new():\n"
        "    print('makes one', flush=True); sys.stdin.readline(); return zmq.curve_keypair()\n"
        "pair = own_pair(sys.argv[1], new); print(pair.public.hex(), pair.secret.hex())\n"
    )
    command = [sys.executable, "-c", program, str(path)]
    makers = [
        subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for maker in makers:
        assert maker.stdout and maker.stdout.readline() == "makes one\n"
    told = [maker.communicate("go on\n", timeout=scaled(60))[0].split() for maker in makers]
    pair = own_pair(str(path), never)
    assert told == [[pair.public.hex(), pair.secret.hex()]] * 2
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_run_has_left(tmp_path: Path) -> None:
    """Half a file under the name that this process would use is no obstacle."""
    path = tmp_path / "node.key"
    (tmp_path / f"node.key.{os.getpid()}.new").write_text("half")
    tmp_path.chmod(0o700)
    own_pair(str(path), zmq.curve_keypair)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o1777])
def test_no_key_is_made_where_others_may_write(tmp_path: Path, mode: int) -> None:
    """It is refused before anything is made."""
    (tmp_path / "messages").mkdir()
    (tmp_path / "messages").chmod(mode)
    assert f"chmod 700 {tmp_path}/messages" in own_refusal(tmp_path / "messages/node.key")
    assert list((tmp_path / "messages").iterdir()) == []


def test_where_no_key_can_be_made(tmp_path: Path) -> None:
    """The text names path and cause."""
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file/node.key", tmp_path / "file/deeper/node.key", tmp_path / ("x" * 300)):
        text = refusal(lambda path=path: own_pair(str(path), zmq.curve_keypair))  # type: ignore[misc]
        assert text.startswith(f"key_file {path} cannot be read or made: ")


# ---- whose file it is


def secret_of(path: Path) -> bytes:
    secret = loaded(path)[1]
    assert secret is not None
    return secret


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666, 0o777])
def test_a_mode_that_lets_others_in(owned: Path, mode: int) -> None:
    """The text tells the mode, and what mends it."""
    owned.chmod(mode)
    text = own_refusal(owned, secret_of(owned))
    assert f"mode {mode:o}," in text and f"chmod 600 {owned}" in text and "others may know it" in text
    owned.chmod(0o600)
    own_pair(str(owned), never)


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_modes_that_let_nobody_in(owned: Path, mode: int) -> None:
    """Whatever the owner may."""
    owned.chmod(mode)
    own_pair(str(owned), never)


@as_root
def test_a_file_of_somebody_else(owned: Path) -> None:
    """The text tells whose it is, and what mends it."""
    os.chown(owned, 65534, -1)
    text = own_refusal(owned, secret_of(owned))
    assert "belongs to user 65534" in text and f"chown 0 {owned}" in text
    os.chown(owned, 0, -1)
    own_pair(str(owned), never)


@as_root
def test_a_directory_of_somebody_else(owned: Path) -> None:
    """Its owner could put a key of his own there."""
    os.chown(owned.parent, 65534, -1)
    text = own_refusal(owned, secret_of(owned))
    assert f"directory {owned.parent} belongs to user 65534" in text and f"chown 0 {owned.parent}" in text


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_may_write(owned: Path, mode: int) -> None:
    """They could put a key of their own there; to read it is no harm."""
    owned.parent.chmod(mode)
    text = own_refusal(owned, secret_of(owned))
    assert f"directory {owned.parent} can be written by others: chmod 700 {owned.parent}" in text
    owned.parent.chmod(0o755)
    own_pair(str(owned), never)


# ---- what is no key


def _fifo(path: Path) -> None:
    os.mkfifo(path, 0o600)


def _directory(path: Path) -> None:
    path.mkdir(0o700)


def _loop(path: Path) -> None:
    path.symlink_to(path)


NO_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "fifo": (_fifo, "is not a regular file"),
    "directory": (_directory, "Is a directory"),
    "loop": (_loop, "symbolic link"),
}


@pytest.mark.parametrize("kind", NO_FILES)
def test_no_file_at_all(tmp_path: Path, kind: str) -> None:
    """Neither a pair nor a certificate is there, and nobody waits for one."""
    make, reason = NO_FILES[kind]
    tmp_path.chmod(0o700)
    make(tmp_path / "k")
    for text in (own_refusal(tmp_path / "k"), refusal(lambda: public_key(str(tmp_path / "k")))):
        assert f"{tmp_path}/k" in text and reason in text


def test_a_symlink(owned: Path) -> None:
    """A certificate may be one, the owner's file may not, and none is made where it leads nowhere."""
    link, dangling = owned.parent / "link", owned.parent / "dangling"
    link.symlink_to(owned)
    dangling.symlink_to(owned.parent / "none")
    assert public_key(str(link)) == own_pair(str(owned), never).public
    for path in (link, dangling):
        text = own_refusal(path, secret_of(owned))
        assert str(path) in text and "symbolic link" in text
    assert not (owned.parent / "none").exists()


def _pair_of(public: bytes, secret: bytes) -> bytes:
    return b'metadata\ncurve\n    public-key = "%b"\n    secret-key = "%b"\n' % (public, secret)


PUBLIC, SECRET = zmq.curve_keypair()
GARBAGE = {
    "empty": b"",
    "newlines": b"\n\n\n",
    "NULs": bytes(1000),
    "any bytes": bytes(range(256)),
    "hex": zmq.utils.z85.decode(SECRET).hex().encode(),
    "the bare secret": SECRET,
    "a key of SSH": b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + SECRET + b"\n-----END OPENSSH PRIVATE KEY-----\n",
    "no Z85": _pair_of(PUBLIC, SECRET).replace(b'"', b"~"),
    "a digit that is none": _pair_of(b"~" + PUBLIC[1:], b"~" + SECRET[1:]),
    "no 32 bits": _pair_of(b"#" * 40, b"#" * 40),
    "too short": _pair_of(PUBLIC[1:], SECRET[1:]),
    "too long": _pair_of(PUBLIC + b"0", SECRET + b"0"),
    "commented out": _pair_of(PUBLIC, SECRET).replace(b"    ", b"  # "),
    "two lines in one": _pair_of(PUBLIC, SECRET).replace(b"\n", b" "),
    "too large": _pair_of(PUBLIC, SECRET) + b"\n" * MAX_FILE_BYTES,
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_garbage(tmp_path: Path, kind: str) -> None:
    """It is told by its path and by what it is not; nothing of it is shown, since it may be somebody's secret."""
    path = tmp_path / "k"
    path.write_bytes(GARBAGE[kind])
    path.chmod(0o600)
    tmp_path.chmod(0o700)
    for text in (own_refusal(path, SECRET, PUBLIC), refusal(lambda: public_key(str(path)), SECRET, PUBLIC)):
        assert str(path) in text and ("no certificate" in text or "no file of a key" in text)
        assert ("larger than 65536 bytes" in text) == (kind == "too large")


def test_half_a_pair(tmp_path: Path) -> None:
    """A certificate is no pair, and a secret alone is neither."""
    tmp_path.chmod(0o700)
    whole = _pair_of(PUBLIC, SECRET)
    for half, missing in ((b"public", "secret"), (b"secret", "public")):
        path = tmp_path / missing
        path.write_bytes(b"".join(line for line in whole.splitlines(True) if half in line))
        path.chmod(0o600)
        assert own_refusal(path, SECRET) == f"{path} is no certificate with a {missing} key of CURVE"


def test_the_largest_file(tmp_path: Path) -> None:
    """The limit itself is fine."""
    path = tmp_path / "k"
    path.write_bytes(_pair_of(PUBLIC, SECRET).ljust(MAX_FILE_BYTES, b"\n"))
    assert public_key(str(path)) == zmq.utils.z85.decode(PUBLIC)


def test_no_certificate_there(tmp_path: Path) -> None:
    """The text names path and cause."""
    assert refusal(lambda: public_key(f"{tmp_path}/k")) == f"{tmp_path}/k cannot be read: No such file or directory"


@given(
    data=st.binary(max_size=300) | st.text(st.sampled_from('public-secret key="\n #0aZ'), max_size=300).map(str.encode)
)
def test_any_bytes_for_a_key(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """A key of 32 bytes or BadKey."""
    path = tmp_path_factory.mktemp("bytes") / "k"
    path.write_bytes(data)
    with suppress(BadKey):
        assert len(public_key(str(path))) == KEY_BYTES


# ---- a directory of certificates


def test_keys_of_a_directory(tmp_path: Path) -> None:
    """NAME.key is NAME's, NAME~ANYTHING.key another one of it; whatever has another ending is nobody's."""
    paths = {name: certificates(tmp_path, name)[0] for name in ("web1.example.org", "web2", "web2~old", "web2~~2", "~")}
    (tmp_path / "README").write_text("what this is")
    (tmp_path / "web3.key.new").write_text("half")
    (tmp_path / "folder").mkdir()
    assert directory_keys(str(tmp_path)) == {public_key(str(path)): name.split("~")[0] for name, path in paths.items()}
    assert len(directory_keys(str(tmp_path))) == len(paths)


def test_an_empty_directory(tmp_path: Path) -> None:
    """Nobody is let in."""
    assert directory_keys(str(tmp_path)) == {}


@pytest.mark.parametrize("bad", ["empty", "the bare secret", "too large"])
def test_one_bad_file_of_many(tmp_path: Path, bad: str) -> None:
    """It is told by its name: somebody who should be let in or kept out is not known."""
    for name in ("web1", "web2", "web3"):
        certificates(tmp_path, name)
    (tmp_path / "web2.key").write_bytes(GARBAGE[bad])
    text = refusal(lambda: directory_keys(str(tmp_path)), SECRET)
    assert f"{tmp_path}/web2.key" in text and "web1" not in text and "web3" not in text


@pytest.mark.parametrize("kind", NO_FILES)
def test_no_file_among_the_certificates(tmp_path: Path, kind: str) -> None:
    """Nobody waits for it."""
    make, reason = NO_FILES[kind]
    certificates(tmp_path, "web1")
    make(tmp_path / "web2.key")
    text = refusal(lambda: directory_keys(str(tmp_path)))
    assert f"{tmp_path}/web2.key" in text and reason in text


def test_no_directory(tmp_path: Path) -> None:
    """None, or a file: the text names path and cause."""
    (tmp_path / "file").write_text("x")
    for name, reason in (("none", "No such file"), ("file", "Not a directory")):
        text = refusal(lambda name=name: directory_keys(f"{tmp_path}/{name}"))  # type: ignore[misc]
        assert text.startswith(f"directory of keys {tmp_path}/{name}: ") and reason in text


# ---- who is let in

KEYS = [bytes([number]) * KEY_BYTES for number in range(3)]
KNOWN = {KEYS[0]: "web1", KEYS[1]: "wéb2"}


def admit(caller: Caller) -> str:
    if caller.domain == "ours" and caller.mechanism == "CURVE" and caller.key in KNOWN:
        return KNOWN[caller.key]
    raise PermissionError("not you")


def asked(key: bytes, domain: bytes = b"ours", mechanism: bytes = b"CURVE", version: bytes = b"1.0") -> list[bytes]:
    """A request of libzmq."""
    return [version, b"id", domain, b"192.0.2.1", b"", mechanism, key]


def test_who_is_known_is_let_in() -> None:
    """The reply has the id of the request and that of the user."""
    assert answered(asked(KEYS[0]), admit) == [b"1.0", b"id", b"200", b"OK", b"web1", b""]
    assert answered(asked(KEYS[1]), admit) == [b"1.0", b"id", b"200", b"OK", "wéb2".encode(), b""]


@pytest.mark.parametrize(
    "frames",
    [
        asked(KEYS[2]),
        asked(KEYS[0], domain=b"theirs"),
        asked(KEYS[0], domain=b""),
        asked(KEYS[0], domain=b"ours\xff"),
        asked(KEYS[0], mechanism=b"NULL"),
        asked(KEYS[0], mechanism=b"PLAIN"),
        asked(KEYS[0], mechanism=b"curve"),
        asked(KEYS[0], mechanism=b"\xff"),
        asked(KEYS[0], mechanism=b"NULL")[:-1],
    ],
)
def test_who_is_not_known_is_refused(frames: list[bytes]) -> None:
    """400, with the reason, and no user."""
    assert answered(frames, admit) == [b"1.0", b"id", b"400", b"not you", b"", b""]


@pytest.mark.parametrize(
    "frames",
    [
        *([], [b""], [b"1.0"], [b"1.0", b"id"]),
        *(asked(KEYS[0])[:length] for length in (3, 4, 5, 6)),
        *(asked(KEYS[0], version=version) for version in (b"", b"1.1", b"2.0", b"1.0\0", b"\xff")),
        *(asked(key) for key in (b"", KEYS[0][1:], KEYS[0] + b"\0", KEYS[0].hex().encode())),
        [*asked(KEYS[0]), KEYS[0]],
    ],
)
def test_what_is_no_request(frames: list[bytes]) -> None:
    """500; nobody is asked about it."""

    def asks(_caller: Caller) -> str:
        raise AssertionError("asked")

    request = frames[1] if len(frames) > 1 else b""
    reply = answered(frames, asks)
    assert [reply[0], *reply[2:3], *reply[4:]] == [b"1.0", b"500", b"", b""] and reply[1] == request


def test_what_is_asked_about_a_caller() -> None:
    """The key of a CURVE client alone: other mechanisms give what may be a password."""
    heard: list[Caller] = []

    def hears(caller: Caller) -> str:
        heard.append(caller)
        return "x"

    answered(asked(KEYS[0]), hears)
    answered([*asked(b"user", mechanism=b"PLAIN"), b"password"], hears)
    answered(asked(b"", mechanism=b"NULL")[:-1], hears)
    assert heard == [
        Caller("ours", "192.0.2.1", "CURVE", KEYS[0]),
        Caller("ours", "192.0.2.1", "PLAIN", b""),
        Caller("ours", "192.0.2.1", "NULL", b""),
    ]


frames = st.lists(st.binary(max_size=40) | st.sampled_from([b"1.0", b"ours", b"CURVE", *KEYS]), max_size=10)
almost = st.tuples(
    st.sampled_from([b"1.0", b"1.0", b"1.0", b"1", b""]),
    st.binary(max_size=5),
    st.sampled_from([b"ours", b"ours", b"theirs"]) | st.binary(max_size=5),
    st.binary(max_size=20),
    st.binary(max_size=5),
    st.sampled_from([b"CURVE", b"CURVE", b"NULL", b"PLAIN", b"GSSAPI"]) | st.binary(max_size=5),
    st.sampled_from(KEYS) | a_key | st.binary(max_size=40),
)
almost_requests = st.builds(
    lambda whole, cut, more: [*whole[:cut], *more], almost, st.integers(4, 7), st.just([]) | frames
)


@pytest.mark.fuzz
@given(st.one_of(frames, almost.map(list), almost_requests, st.sampled_from(KEYS).map(asked)))
def test_any_frames(request: list[bytes]) -> None:
    """Six frames come back, whatever is asked; 200 only for whom `admit` admits, and then with his id."""
    fuzz.watch()
    reply = answered(request, admit)
    fuzz.count(fuzz.ZAP_REQUESTS, f"answered {reply[2].decode()}")
    assert len(reply) == 6 and all(isinstance(frame, bytes) for frame in reply)
    well_formed = len(request) == 7 and request[0] == b"1.0" and request[2] == b"ours" and request[5] == b"CURVE"
    known = KNOWN.get(request[6]) if well_formed else None
    assert (reply[2] == b"200") == (known is not None)
    assert reply[4] == (known or "").encode() and reply[2] in (b"200", b"400", b"500")
