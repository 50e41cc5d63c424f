"""Who may ask: addresses, keys, and what a browser says of where a request comes from."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from stal.app.problems import Problem
from stal.files import load_text

STDIN = Path("-")
_LEAST_CHARS, _MOST_BYTES = 16, 4096
# Methods that change nothing.
_SAFE = ("GET", "HEAD", "OPTIONS")


def read_key(source: Path) -> str:
    """The key in a file; of standard input if it is "-".

    Raises ValueError if it is not 16 or more printable characters of ASCII without spaces.
    """
    if source == STDIN:
        text, name = sys.stdin.read(_MOST_BYTES + 1), "standard input"
    else:
        try:
            text = load_text(source, name="api_key_file", limit=_MOST_BYTES)
        except OSError as error:
            got = f"{source}: {error.strerror}"
            raise ValueError(f"api_key_file must be a text file, got {got}") from error
        name = str(source)
    key = text.strip()
    plain = key.isascii() and key.isprintable() and " " not in key
    if not plain or not _LEAST_CHARS <= len(key) <= _MOST_BYTES:
        rule = f"hold a key of {_LEAST_CHARS} or more printable characters without spaces"
        raise ValueError(f"api_key_file must {rule}, got another text in {name}")
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that binds to the host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(host: str, key: str | None) -> None:
    """Raises ValueError if others could reach the server without a key."""
    if key is None and not is_loopback(host):
        raise ValueError(
            f"host must be a loopback address such as 127.0.0.1 without a key, got {host}: give "
            "--api-key-file to serve others"
        )


class Access:
    """The rules for every request.

    Args:
        key: that all but public paths want as "Authorization: Bearer KEY"; None where the server
            is only reached from this machine.
        local: whether requests name this machine as their host. Otherwise a page from elsewhere,
            whose name leads here, could read what the server says (DNS rebinding).
    """

    def __init__(self, key: str | None, *, local: bool) -> None:
        self._digest = None if key is None else _digest(key.encode())
        self._local = local

    def check(self, method: str, headers: Mapping[str, str], *, public: bool) -> None:
        """Raises Problem for a request that is not to be answered.

        headers: by name in lower case.
        public: whether the path is for everybody.
        """
        host = headers.get("host", "")
        if self._local and not is_loopback(_name(host)):
            rule = "host must be this machine, such as localhost or 127.0.0.1"
            raise Problem(421, f"{rule}, got {host!r}", code="wrong_host")
        origin = headers.get("origin")
        if method not in _SAFE and origin is not None and _site(origin) != host:
            rule = f"origin must be the server's own page at {host!r}, got {origin!r}"
            raise Problem(403, rule, code="wrong_origin")
        if self._digest is None or public:
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer":
            rule = 'the header "Authorization: Bearer KEY" must be given, got none'
            raise Problem(401, rule, code="missing_api_key")
        # Of equal lengths whatever was given, so that the time tells nothing.
        if not hmac.compare_digest(_digest(given.strip().encode()), self._digest):
            raise Problem(
                401, "the API key must be the server's, got another", code="invalid_api_key"
            )


def _site(origin: str) -> str:
    """Host and port of an origin."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _name(host: str) -> str:
    """A host without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
