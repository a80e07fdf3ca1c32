"""A file that is taken over when it changes; while it is broken the former content goes on being good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from cloister.errors import CloisterError, ConfigError

T = TypeVar("T")


class WatchedFile(Generic[T]):
    """The parsed content of a file as it was when it was last right."""

    def __init__(
        self,
        path: Path,
        parse: Callable[[Path], T],
        *,
        on_problem: Callable[[CloisterError], None] = lambda _: None,
    ) -> None:
        """Load it.

        Raises:
            ConfigError: it cannot be read, or is not what it should be.
        """
        self._path = path
        self._parse = parse
        self._on_problem = on_problem
        self._seen = self._stamp()
        self.content = parse(path)

    def refresh(self) -> bool:
        """Look at the file; whether there is another content now."""
        try:
            stamp = self._stamp()
            if stamp == self._seen:
                return False
            self._seen = stamp
            self.content = self._parse(self._path)
        except CloisterError as error:
            if self._seen != (0, 0, 0):
                self._on_problem(error)
            if not self._path.exists():
                self._seen = (0, 0, 0)  # reported once
            return False
        return True

    def _stamp(self) -> tuple[int, int, int]:
        try:
            status = self._path.stat()
        except OSError as error:
            raise ConfigError(f"cannot read {self._path}: {error.strerror}") from error
        return status.st_mtime_ns, status.st_size, status.st_ino
