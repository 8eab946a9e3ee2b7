"""cf-messaged keys: by an operator's hand, which keys are let in. It changes files, which a listener that runs sees."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from cf_messaged import keyring
from cf_messaged.complaints import in_words
from cf_messaged.keyring import (
    ACCEPTED,
    FOLDERS,
    LISTENER,
    MAX_NAME_BYTES,
    NEXT_LISTENER,
    REJECTED,
    REVOKED,
    WAITING,
    Held,
    file_of,
)
from cf_messaged.shown import Shown, fail, terminal_width
from cf_messaged.times import rfc3339
from cf_messaging.keys import SUFFIX, BadKey, certificate, from_hex, make_pair, public_key
from cf_messaging.wire import check_node

_SHORTEST = 8  # digits that tell a key


@click.group()
@click.option("--config", "config_path", metavar="FILE", help="Settings, in TOML.")
@click.option("--keys-dir", metavar="DIRECTORY", help="Whose keys are let in, if not that of the settings.")
@click.pass_context
def keys(context: click.Context, config_path: str | None, keys_dir: str | None) -> None:
    """Whose keys are let in."""
    from cf_messaged.cli import settings

    directory = settings(config_path, keys_dir=keys_dir).keys_dir
    if directory is None:
        fail("no keys_dir is set: name it in the settings, or by --keys-dir")
    with _in_words():
        keyring.make(directory)
    context.obj = directory


@keys.command("list")
@click.pass_obj
def list_keys(directory: str) -> None:
    """Tell which keys are accepted, revoked or rejected, and which are unknown and knocked."""
    with _in_words():
        rows = keyring.listed(directory)
    click.echo(Shown({}, terminal_width()).text(rows) or "no keys\n", nl=False)


@keys.command()
@click.pass_obj
def trusted(directory: str) -> None:
    """Tell which hosts are trusted: the digest of each key, its file, and the node that is let in by it."""
    with _in_words():
        nodes = {held.host_key: held.node for held in _held(directory, ACCEPTED).values()}
        hosts = keyring.trusted_files(directory)
    rows = [{"host_key": host_key, "file": file, "node": nodes.get(host_key, "")} for host_key, file in hosts]
    click.echo(Shown({}, terminal_width()).text(rows) or "no host is trusted\n", nl=False)


@keys.command()
@click.pass_obj
def show(directory: str) -> None:
    """Tell the listener's own key, as policy wants it in `server_key`."""
    click.echo(_own(directory).hex())


@keys.command()
@click.argument("file", type=click.Path(), required=False)
@click.pass_obj
def export(directory: str, file: str | None) -> None:
    """Write the listener's certificate to FILE, for `server_key` and for other programs of ZeroMQ, or show it."""
    next_path = os.path.join(directory, NEXT_LISTENER)
    coming = [_made(next_path)] if os.path.lexists(next_path) else []
    text = certificate([_own(directory), *coming], "The key of a cf-messaged")
    if file is None:
        click.echo(text, nl=False)
        return
    try:
        if os.path.exists(file) and not os.path.isfile(file):  # a pipe, a terminal
            Path(file).write_text(text)
            return
        Path(f"{file}.new").write_text(text)
        os.replace(f"{file}.new", file)  # nodes may read it at any moment
    except OSError as error:
        fail(f"{file}: {error.strerror}")


@keys.command()
@click.option("--now", is_flag=True, help="Put the next key in the place of the listener's own.")
@click.pass_obj
def renew(directory: str, now: bool) -> None:
    """Make the listener's next key, which it tells nodes under its own; with --now, let it take its place.

    Nodes need the next one in `server_key`, see `export`, before it takes its place.
    """
    path, next_path = (os.path.join(directory, name) for name in (LISTENER, NEXT_LISTENER))
    if now:
        if not os.path.lexists(next_path):
            fail("there is no next key: `cf-messaged keys renew` makes one")
        key = _made(next_path)
        with _in_words():
            os.replace(next_path, path)
        click.echo(f"{key.hex()} is the key from the next start on: restart the listener")
        return
    click.echo(f"{_made(next_path).hex()} is the next key: give it to nodes beside {_own(directory).hex()}")


@keys.command()
@click.argument("key")
@click.argument("node", required=False)
@click.option("--replace", is_flag=True, help="Let others in no more that have been accepted as this node.")
@click.pass_obj
def accept(directory: str, key: str, node: str | None, replace: bool) -> None:
    """Let KEY in, as NODE. KEY: 64 hex digits, or the first of one that waits or knocked. NODE: need not be named if it
    waits.
    """
    found = _key(directory, key)
    accepted, revoked, rejected, waiting = (_held(directory, state) for state in FOLDERS)
    known = waiting.get(found)
    node = _checked(node or (known.node if known else ""))
    if found in revoked:
        fail(f"{found.hex()} was revoked, and stays so: {node} needs another key")
    if found in accepted:
        fail(f"{found.hex()} is accepted already, as {accepted[found].node}")
    host_key = known.host_key if known and known.node == node else ""
    if host_key in {held.host_key for held in revoked.values() if held.host_key}:
        fail(f"{host_key} was revoked, and with it all its keys: remove its files from `{REVOKED}` of keys_dir first")
    others = [held for held in accepted.values() if held.node == node or (host_key and held.host_key == host_key)]
    name = file_of(node, found, accepted.values())
    with _in_words():
        if found in rejected:
            os.unlink(Path(directory) / REJECTED / rejected[found].file)
        keyring.accept(directory, Held(found, node, name, host_key, rfc3339(time.time_ns() // 1000)))
    click.echo(f"accepted {found.hex()} as {node}")
    _replace(directory, others, replace)


def _checked(node: str) -> str:
    try:
        check_node(node)
        if len(node) > MAX_NAME_BYTES:
            raise ValueError(f"{MAX_NAME_BYTES} characters are allowed")
    except ValueError as error:
        fail(f"'{node}' is no node: {error}")
    return node


def _replace(directory: str, others: Sequence[Held], replace: bool) -> None:
    for held in others:
        if replace:
            with _in_words():
                os.unlink(Path(directory) / ACCEPTED / held.file)
            click.echo(f"{held.key.hex()} of {held.node} is let in no more")
        else:
            click.echo(
                f"{held.node} has another key too: `cf-messaged keys revoke {held.key.hex()}` once it uses this one"
            )


@keys.command()
@click.argument("key")
@click.pass_obj
def reject(directory: str, key: str) -> None:
    """Keep KEY out, and say nothing of it any more."""
    found = _key(directory, key)
    if found in _held(directory, ACCEPTED):
        fail(f"{found.hex()} is accepted: `cf-messaged keys revoke` it")
    name = f"rejected~{found.hex()}{SUFFIX}"
    with _in_words():
        keyring.write(Path(directory) / REJECTED / name, certificate(found, "Rejected"))
        keyring.wait_no_more(directory, found)
    click.echo(f"rejected {found.hex()}")


@keys.command()
@click.argument("who")
@click.pass_obj
def revoke(directory: str, who: str) -> None:
    """Let a key in no more, and never again. WHO: a key; or a node, which means all its keys, and that its host enrols
    no other.
    """
    meant = [each for each in _held(directory, ACCEPTED).values() if each.node == who or _is_meant(each.key, who)]
    if not meant:
        fail(f"no accepted key is, or is of, '{who}'")
    for held in meant:
        with _in_words():
            keyring.revoke(directory, held, bars_host=held.node == who)
        click.echo(f"revoked {held.key.hex()} of {held.node}")
        if held.node == who and held.host_key:
            click.echo(f"nothing is enrolled by {held.host_key} any more")


def _key(directory: str, text: str) -> bytes:
    """All digits, or the first of one that waits or knocked."""
    try:
        return from_hex(text)
    except ValueError as error:
        seen = {*_held(directory, WAITING), *(each.key for each in keyring.read_strangers(directory))}
        meant = [key for key in seen if _is_meant(key, text)]
        if len(meant) != 1:
            told = f"the beginning of {len(meant)} keys that knocked" if meant else f"{error}, and no key that knocked"
            fail(f"'{text:.100}' is {told}")
        return meant[0]


def _is_meant(key: bytes, text: str) -> bool:
    return len(text) >= _SHORTEST and key.hex().startswith(text.lower())


def _held(directory: str, state: str) -> Mapping[bytes, Held]:
    with _in_words():
        return keyring.held_in(directory, state)


def _own(directory: str) -> bytes:
    return _made(os.path.join(directory, LISTENER))


def _made(path: str) -> bytes:
    """The key in the listener's file, which is made if there is none."""
    try:
        if not os.path.lexists(path):
            import zmq

            with _in_words():
                make_pair(path, zmq.curve_keypair)
        return public_key(path)
    except BadKey as error:
        fail(str(error))


@contextmanager
def _in_words() -> Iterator[None]:
    """What the system refuses, in one line."""
    try:
        yield
    except OSError as error:
        fail(in_words(error))
