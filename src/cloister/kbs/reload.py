"""A configuration file that is read again when it changes, so that its owner need not restart the broker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from cloister.errors import CloisterError, ConfigError

T = TypeVar("T")


class ReloadedFile(Generic[T]):
    """The parsed content of a file as it is now.

    A file that is broken stays broken until it is mended: the content from before the change is not used,
    because it may allow what its owner has just taken out.
    """

    def __init__(self, path: Path, parse: Callable[[Path], T]) -> None:
        self._path = path
        self._parse = parse
        self._lock = threading.Lock()
        self._stamp: tuple[int, int, int] | None = None
        self._content: T | None = None
        self._error: CloisterError | None = None

    def get(self) -> T:
        """The content.

        Raises:
            ConfigError: the file is missing or broken.
        """
        try:
            status = self._path.stat()
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}") from error
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        with self._lock:
            if stamp != self._stamp:
                self._content, self._error = None, None
                try:
                    self._content = self._parse(self._path)
                except CloisterError as error:
                    self._error = error
                self._stamp = stamp
            if self._content is None:
                message = self._error.message if self._error else f"{self._path} is empty"
                raise ConfigError(message) from self._error
            return self._content
