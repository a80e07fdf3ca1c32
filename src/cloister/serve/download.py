"""Fetch an archive into the model store from a URL that the operator has allowed.

Nothing is allowed by default. A redirect is followed only to a URL that is allowed itself, so that an allowed
host cannot send the server to another one.

Source: pytorch/serve 0.12, ArchiveUtils.validateURL (expressions match the whole URL, whatever its case).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

import httpx

from cloister.errors import ConfigError, ModelNotFound, ServingError, TransportError
from cloister.serve.archive import MAX_UNPACKED_BYTES

MAX_URL_CHARS = 2048
MAX_REDIRECTS = 5
TIMEOUT_S = 30.0
"""For a connection, and between two pieces of the file."""
_URL = re.compile(r"(file|https?)://.*", re.IGNORECASE | re.DOTALL)
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")


def is_url(url: str) -> bool:
    """Whether this is a URL, not the name of a file in the store."""
    return bool(_URL.fullmatch(url))


def fetch_archive(
    url: str, store: Path, allowed: Sequence[str], *, max_bytes: int = MAX_UNPACKED_BYTES
) -> str:
    """Fetch ``url`` into ``store`` and return the file's name there.

    Raises:
        ModelNotFound: the URL is not allowed, or names no file.
        ServingError: a file of that name is there already.
        TransportError: it could not be fetched.
        ConfigError: an expression in ``allowed`` is not one.
    """
    require_allowed(url, allowed)
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    if not _FILE_NAME.fullmatch(name):
        raise ModelNotFound(f"Model not found at: {url}")
    target = store / name
    if target.exists():
        raise ServingError(f"Model file already exists {name}")
    part = store / f".{name}.{secrets.token_hex(8)}.part"
    try:
        with part.open("xb") as file:
            _copy(url, file, allowed, max_bytes)
        os.link(part, target)
    except FileExistsError as error:
        raise ServingError(f"Model file already exists {name}") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise TransportError(f"Failed to download archive from: {url}") from error
    finally:
        part.unlink(missing_ok=True)
    return name


def require_allowed(url: str, allowed: Sequence[str]) -> None:
    """Refuse a URL that no expression matches as a whole.

    Raises:
        ModelNotFound: none does.
        ConfigError: one of them is not a regular expression.
    """
    try:
        if len(url) <= MAX_URL_CHARS and any(
            re.fullmatch(expression, url, re.IGNORECASE) for expression in allowed
        ):
            return
    except re.error as error:
        raise ConfigError(f"serve.allowed_urls: not a regular expression: {error}") from error
    raise ModelNotFound(f"Given URL {url[:256]} does not match any allowed URL(s)")


def _copy(url: str, target: IO[bytes], allowed: Sequence[str], max_bytes: int) -> None:
    parts = urlsplit(url)
    if parts.scheme.lower() == "file":
        with Path(unquote(parts.path)).open("rb") as source:
            shutil.copyfileobj(source, target, 1 << 20)
        return
    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as client:
        for _ in range(MAX_REDIRECTS + 1):
            with client.stream("GET", url) as response:
                if response.next_request is not None:
                    url = str(response.next_request.url)
                    require_allowed(url, allowed)
                    continue
                response.raise_for_status()
                _copy_body(response, target, max_bytes)
                return
    raise TransportError("too many redirects")


def _copy_body(response: httpx.Response, target: IO[bytes], max_bytes: int) -> None:
    done = 0
    for chunk in response.iter_bytes(1 << 20):
        done += len(chunk)
        if done > max_bytes:
            raise TransportError(f"the archive has more than {max_bytes} bytes")
        target.write(chunk)
