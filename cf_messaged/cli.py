"""The command line: cf-messaged run, view, status, forget, check-config; keys_cli.py and explain.py have the others."""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from typing import Any

import click
from sqlalchemy import make_url

from cf_messaged import __version__, keyring, views
from cf_messaged.complaints import in_words
from cf_messaged.config import BadConfig, Config, load
from cf_messaged.database import Limits, StoreUnavailable, database, without_password
from cf_messaged.explain import explain
from cf_messaged.follow import Follower, Watch
from cf_messaged.keys_cli import keys
from cf_messaged.metrics import CannotServe
from cf_messaged.shown import Shown, fail, one_line, terminal_width, working
from cf_messaged.store import Store, summary
from cf_messaged.systemd import is_journal, priority
from cf_messaged.times import rfc3339

log = logging.getLogger("cf_messaged")

_CONFIG = click.option("--config", "config_path", metavar="FILE", help="Settings, in TOML.")
_STORE = click.option(
    "--store", metavar="URL", help="Where everything is kept: sqlite:///PATH, postgresql://HOST/DATABASE."
)


def settings(config_path: str | None, **said: Any) -> Config:
    try:
        return load(config_path, said)
    except BadConfig as error:
        fail(error)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cf-messaged")
def main() -> None:
    """Listens to what nodes promise, keeps it, and answers views of it."""


class _Line(logging.Formatter):
    """begin: what a line begins with."""

    def __init__(self, begin: Callable[[logging.LogRecord], str]) -> None:
        super().__init__()
        self._begin = begin

    def format(self, record: logging.LogRecord) -> str:
        return f"{self._begin(record)}{record.levelname.lower()}: {one_line(record.getMessage())}"


def _moment(record: logging.LogRecord) -> str:
    return f"{rfc3339(int(record.created * 1_000_000))} "


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_Line(priority if is_journal(2, os.environ) else _moment))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False


@main.command()
@_CONFIG
@_STORE
@click.option("--request", metavar="ENDPOINT", help="Where nodes say information and ask for views.")
@click.option("--push", metavar="ENDPOINT", help="Where nodes push; off: nowhere.")
@click.option("--publish", metavar="ENDPOINT", help="Where nodes publish; off: nowhere.")
@click.option("--subscribe", metavar="ENDPOINT", help="Where anybody subscribes to what was said; off: nowhere.")
@click.option("--pair", metavar="ENDPOINT", help="Where one node is a pair of this listener; off is the default.")
@click.option("--enrol", "enrolment", metavar="ENDPOINT", help="Where nodes enrol, with keys; off: nowhere.")
@click.option("--metrics", metavar="HOST:PORT", help="Where Prometheus asks; off is the default.")
@click.option("--keys-dir", metavar="DIRECTORY", help="Whose keys are let in; without it, whoever reaches an endpoint.")
@click.option("--insecure", is_flag=True, default=None, help="Listen beyond this machine without keys.")
def run(config_path: str | None, **said: Any) -> None:
    """Listen, until SIGTERM."""
    from cf_messaged.service import Service  # zmq is for this command alone
    from cf_messaged.sockets import CannotListen, raise_limits

    config = settings(config_path, **said)
    _log_to_stderr()
    try:
        raise_limits(config.connections)
        _check_views(config)
        with working("opening the store, which takes minutes where a large one is upgraded"):
            store = Store(config.store, config.alive_within_s)
        _make_keys_dir(config)
        service = Service(config, store, lambda: _load(config_path, said))
    except (StoreUnavailable, CannotListen, CannotServe, views.BadView) as error:
        fail(error)
    service.heed_signals()
    if config.insecure and not config.keys_dir:
        log.warning("--insecure: everybody who reaches this listener can say and read everything")
    for role, bound in service.endpoints.items():
        click.echo(f"{role} {bound}")
    log.info("cf-messaged %s listens on %s", __version__, service.endpoints["request"])
    service.run()
    service.close()
    log.info("ended: %s", service.metrics.counters)


def _make_keys_dir(config: Config) -> None:
    try:
        if config.keys_dir:
            keyring.make(config.keys_dir)
    except OSError as error:
        fail(f"keys_dir: {in_words(error)}")


def _load(config_path: str | None, said: dict[str, Any]) -> Config:
    """Raises BadConfig."""
    config = load(config_path, said)
    try:
        _check_views(config)
    except views.BadView as error:
        raise BadConfig(str(error)) from None
    return config


@main.command("check-config")
@_CONFIG
@_STORE
def check_config(config_path: str | None, store: str | None) -> None:
    """Tell whether the settings are right, and what they are."""
    config = settings(config_path, store=store)
    try:
        _check_views(config)
    except views.BadView as error:
        fail(error)
    shown = {**asdict(config), "store": without_password(make_url(config.store))}
    for name, value in shown.items():
        if value is not None:
            click.echo(f"{name} = {json.dumps(value, ensure_ascii=False)}")


def _check_views(config: Config) -> None:
    for name in views.names(config.views_dir):
        views.load(name, config.views_dir)


@main.command()
@click.argument("name", required=False)
@click.option(
    "--param", "params", metavar="NAME=VALUE", multiple=True, help="A parameter of the view; may be repeated."
)
@click.option("--follow", is_flag=True, help="Go on with rows that are new, looked for each second, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="The rows as JSON; with --follow one object a line.")
@_CONFIG
@_STORE
def view(
    name: str | None,
    params: tuple[str, ...],
    follow: bool,
    as_json: bool,
    config_path: str | None,
    store: str | None,
) -> None:
    """Show a view; without NAME, which there are.

    Followed, a row is new if it was not there a second ago, whatever its age. A view with a parameter `limit` ends with
    its newest row then. What fails later is told in one line, and asked again.
    """
    config = settings(config_path, store=store)
    asked = _asked(params)
    try:
        if name is None:
            _list_views(config)
            return
        found = views.load(name, config.views_dir)
        if follow:
            _follow(config, found, asked, as_json)
            return
        with working(f"asking for {name}"):
            rows = _rows(config, found, _values(config, found, asked))
    except (views.Refused, views.BadView, StoreUnavailable) as error:
        fail(error)
    if as_json:
        click.echo(json.dumps(rows, ensure_ascii=False, indent=1))
    else:
        click.echo(Shown(found.columns, terminal_width()).text(rows) or "no rows\n", nl=False)


def _asked(params: tuple[str, ...]) -> dict[str, str]:
    for param in params:
        if "=" not in param:
            raise click.BadParameter(f"'{param}' is no NAME=VALUE", param_hint="--param")
    return dict(param.split("=", 1) for param in params)


def _values(config: Config, found: views.View, asked: dict[str, str]) -> dict[str, Any]:
    given = {"alive_within": config.alive_within_s, "after": config.alive_within_s}
    return views.values(found, asked, given, time.time_ns() // 1000)


def _rows(config: Config, found: views.View, values: dict[str, Any]) -> list[views.Row]:
    limits = Limits(config.view_timeout_s, config.view_max_rows, config.view_max_bytes)
    summary(config.store)  # a clearer error than SQL's where there is no store
    return views.rows(config.store, found, values, limits)


def _list_views(config: Config) -> None:
    listed = []
    for name in views.names(config.views_dir):
        found = views.load(name, config.views_dir)
        told = [f"{parameter.name} ({parameter.type})" for parameter in found.parameters.values()]
        listed.append({"view": name, "parameters": ", ".join(told), "shows": found.about})
    click.echo(Shown({}, terminal_width()).text(listed), nl=False)


def _follow(config: Config, found: views.View, asked: dict[str, str], as_json: bool) -> None:
    """Until Ctrl-C, or until nobody reads any more."""
    shown = Shown(found.columns, terminal_width())
    text = _as_lines if as_json else shown.text
    follower = Follower(
        found,
        _values(config, found, asked).get("limit"),
        lambda: _rows(config, found, _values(config, found, asked)),
        lambda rows: click.echo(text(rows), nl=False),
        lambda told: click.echo(f"{rfc3339(time.time_ns() // 1000)[:19]}Z {found.name}: {one_line(told)}", err=True),
    )
    try:
        with working(f"asking for {found.name}"):
            follower.begin()
        with closing(Watch(database(config.store))) as watch:
            follower.go_on(watch.version, _wait)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python writes what is left when it ends


def _as_lines(rows: list[views.Row]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _wait(seconds: float) -> bool:
    """Whether anybody still reads what is printed."""
    reader = select.poll()
    reader.register(sys.stdout, 0)  # what hangs up is told in any case
    return not reader.poll(seconds * 1000)


@main.command()
@_CONFIG
@_STORE
def status(config_path: str | None, store: str | None) -> None:
    """Tell what the store holds."""
    config = settings(config_path, store=store)
    try:
        found = summary(config.store)
    except StoreUnavailable as error:
        fail(error)
    age = (
        "never" if found.last_seen is None else f"{max(0, time.time_ns() // 1000 - found.last_seen) // 1_000_000} s ago"
    )
    lines = {"store": found.name, "id": found.store, "size": f"{found.size} bytes"}
    lines |= {"nodes": str(found.nodes), "events": str(found.events), "last event": age}
    for name, value in lines.items():
        click.echo(f"{name:<11}{value}")


@main.command()
@click.argument("node")
@click.argument("name", required=False)
@_CONFIG
@_STORE
def forget(node: str, name: str | None, config_path: str | None, store: str | None) -> None:
    """Remove what is kept of NODE, or of one NAME of it."""
    config = settings(config_path, store=store)
    what = node if name is None else f"{name} of {node}"
    try:
        summary(config.store)  # an error, rather than a new database, where there is none
        with working(f"forgetting {what}") as tell:
            kept = Store(config.store)
            removed = kept.forget(node, name, lambda gone: tell(f"forgetting {what}: {gone:,} rows are gone"))
    except StoreUnavailable as error:
        fail(error)
    if not removed:
        fail(f"nothing is kept of {what}")
    click.echo(f"forgot {what}: {removed} rows")


main.add_command(explain)
main.add_command(keys)
