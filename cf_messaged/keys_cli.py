"""cf-messaged keys: by an operator's hand, which keys are let in. It changes files, which a listener that runs sees."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from cf_messaged import keyring
from cf_messaged.keyring import ACCEPTED, FOLDERS, LISTENER, REJECTED, REVOKED, Held
from cf_messaged.shown import Shown, fail, terminal_width
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
def show(directory: str) -> None:
    """Tell the listener's own key, as policy wants it in `server_key`."""
    click.echo(_own(directory).hex())


@keys.command()
@click.argument("file", type=click.Path(), required=False)
@click.pass_obj
def export(directory: str, file: str | None) -> None:
    """Write the listener's certificate to FILE, for `server_key` and for other programs of ZeroMQ, or show it."""
    text = certificate(_own(directory), "The key of a cf-messaged")
    if file is None:
        click.echo(text, nl=False)
        return
    with _in_words():
        Path(file).write_text(text)


@keys.command()
@click.argument("key")
@click.argument("node")
@click.pass_obj
def accept(directory: str, key: str, node: str) -> None:
    """Let KEY in, as NODE. KEY: 64 hex digits, or the first of one that knocked."""
    try:
        check_node(node)
    except ValueError as error:
        fail(f"'{node}' is no node: {error}")
    found = _key(directory, key)
    accepted, revoked, rejected = (_held(directory, state) for state in FOLDERS)
    if found in revoked:
        fail(f"{found.hex()} was revoked, and stays so: {node} needs another key")
    if found in accepted:
        fail(f"{found.hex()} is accepted already, as {accepted[found].node}")
    others = [held for held in accepted.values() if held.node == node]
    name = f"{node}~{found.hex()[:16]}{SUFFIX}" if others else f"{node}{SUFFIX}"
    with _in_words():
        if found in rejected:
            os.unlink(Path(directory) / REJECTED / rejected[found].file)
        keyring.write(Path(directory) / ACCEPTED / name, certificate(found, f"Accepted as {node}"))
    click.echo(f"accepted {found.hex()} as {node}")
    for held in others:
        click.echo(f"{node} has another key too: `cf-messaged keys revoke {held.key.hex()}` once it uses this one")


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
    click.echo(f"rejected {found.hex()}")


@keys.command()
@click.argument("who")
@click.pass_obj
def revoke(directory: str, who: str) -> None:
    """Let a key in no more, and never again. WHO: a key, or a node, which means all its keys."""
    meant = [each for each in _held(directory, ACCEPTED).values() if each.node == who or _is_meant(each.key, who)]
    if not meant:
        fail(f"no accepted key is, or is of, '{who}'")
    for held in meant:
        with _in_words():
            _revoke(Path(directory), held)
        click.echo(f"revoked {held.key.hex()} of {held.node}")


def _revoke(directory: Path, held: Held) -> None:
    """First what keeps it out: if the rest fails, it is out."""
    name = f"{held.node}~{held.key.hex()}{SUFFIX}"
    keyring.write(directory / REVOKED / name, certificate(held.key, f"Revoked, was {held.node}"))
    os.unlink(directory / ACCEPTED / held.file)


def _key(directory: str, text: str) -> bytes:
    """All digits, or the first of one that knocked."""
    try:
        return from_hex(text)
    except ValueError as error:
        meant = [each.key for each in keyring.read_strangers(directory) if _is_meant(each.key, text)]
        if len(meant) != 1:
            told = f"the beginning of {len(meant)} keys that knocked" if meant else f"{error}, and no key that knocked"
            fail(f"'{text:.100}' is {told}")
        return meant[0]


def _is_meant(key: bytes, text: str) -> bool:
    return len(text) >= _SHORTEST and key.hex().startswith(text.lower())


def _held(directory: str, state: str) -> Mapping[bytes, Held]:
    with _in_words():
        return keyring.held(directory, state)


def _own(directory: str) -> bytes:
    """The listener's, which is made if there is none."""
    path = os.path.join(directory, LISTENER)
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
        fail(f"{error.filename}: {error.strerror}")
