"""The settings: what they may be, and what an error says."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from cf_messaged.config import BadConfig, Config, is_local, load


def read(tmp_path: Path, text: str, **said: Any) -> Config:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    return load(str(path), said)


def test_the_defaults_are_local_and_right() -> None:
    """Without a file and without options: loopback, and the store of a service."""
    config = load(None, {"store": None, "request": None})
    assert config == Config()
    assert (config.store, config.request) == ("sqlite:////var/lib/cf-messaged/store.db", "tcp://127.0.0.1:5309")
    assert (config.alive_within_s, config.view_timeout_s, config.view_max_rows) == (93600, 10, 10_000)


def test_the_command_line_counts_more_than_the_file(tmp_path: Path) -> None:
    """What the command line does not say comes from the file, what neither says is the default."""
    text = 'store = "sqlite:///a.db"\nrequest = "tcp://127.0.0.1:1"\nview_timeout_s = 2.5\n'
    config = read(tmp_path, text, store="sqlite:///b.db", request=None)
    assert (config.store, config.request, config.view_timeout_s) == ("sqlite:///b.db", "tcp://127.0.0.1:1", 2.5)


def test_settings_do_not_change() -> None:
    """They are checked once, so they must stay as they are."""
    with pytest.raises(FrozenInstanceError):
        Config().store = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('stor = "x"', "unknown setting 'stor': did you mean 'store'?"),
        ("alive_within = 1", "unknown setting 'alive_within': did you mean 'alive_within_s'?"),
        ("[xyz]", "unknown setting 'xyz': there are store, request"),
        ("store = 1", "store is 1: allowed is a string"),
        ("insecure = 1", "insecure is 1: allowed is true or false"),
        ("view_max_rows = 1.5", "view_max_rows is 1.5: allowed is an integer"),
        ("view_max_rows = true", "view_max_rows is True: allowed is an integer"),
        ('alive_within_s = "1"', "alive_within_s is '1': allowed is a number"),
        ("alive_within_s = nan", "alive_within_s is nan: allowed is 1 to 1000000000"),
        ("view_timeout_s = 0", "view_timeout_s is 0: allowed is 0.01 to 3600"),
        ("views_at_once = 0", "views_at_once is 0"),
        ("view_max_bytes = 16777216", "view_max_bytes is 16777216: allowed is 1 to 16711680"),
        ('views_dir = "views"', "views_dir 'views': allowed is an absolute path"),
        ('store = "postgresql://a"', "allowed is sqlite:///PATH"),
        ('request = "tcp://127.0.0.1"', "'tcp://127.0.0.1' is no endpoint"),
        ('request = "tcp://10.0.0.1:5309"', "request 'tcp://10.0.0.1:5309': everybody who reaches it"),
        ("store = ", "Invalid value"),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path: Path, text: str, reason: str) -> None:
    """The line names the file, the setting, its value and what is allowed."""
    with pytest.raises(BadConfig) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path}/settings.toml: ") and reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """Not there, a directory, no UTF-8."""
    (tmp_path / "latin").write_bytes(b'store = "\xff"')
    for name, reason in (("none", "No such file"), (".", "Is a directory"), ("latin", "decode")):
        with pytest.raises(BadConfig, match=reason):
            load(str(tmp_path / name), {})


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("tcp://127.0.0.1:5309", True),
        ("tcp://127.9.9.9:*", True),
        ("tcp://[::1]:5309", True),
        ("ipc:///run/cf-messaged", True),
        ("tcp://*:5309", False),
        ("tcp://0.0.0.0:5309", False),
        ("tcp://[::]:5309", False),
        ("tcp://eth0:5309", False),
        ("tcp://127.0.0.1.example.org:5309", False),
    ],
)
def test_what_is_local(endpoint: str, local: bool) -> None:
    """Only loopback addresses and ipc:// are; of names nobody knows."""
    assert is_local(endpoint) is local
    if not local:
        assert Config(request=endpoint, insecure=True).request == endpoint


@pytest.mark.parametrize(
    "endpoint", ["", "5309", "tcp://", "tcp://a b:1", "tcp://127.0.0.1:65536", "inproc://x", "ipc://", "tcp://::1:1"]
)
def test_what_is_no_endpoint(endpoint: str) -> None:
    """Also with --insecure."""
    with pytest.raises(BadConfig, match="is no endpoint: allowed are tcp://ADDRESS:PORT"):
        Config(request=endpoint, insecure=True)
