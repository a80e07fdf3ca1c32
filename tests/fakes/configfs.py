"""A stand-in for the kernel's configfs-tsm folder: making a folder makes its attributes, as there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import PosixPath
from typing import Any, ClassVar


class FakeConfigfsPath(PosixPath):
    """A path below which ``mkdir``, writing ``inblob`` and ``rmdir`` do what the kernel does."""

    provider: ClassVar[bytes] = b"tdx_guest\n"
    make_quote: ClassVar[Callable[[bytes], bytes]] = staticmethod(lambda report_data: b"")
    interfere: ClassVar[bool] = False
    """Whether another process writes to the report between our write and our reading of ``generation``."""

    def mkdir(self, *args: Any, **kwargs: Any) -> None:
        """Make the report's folder and its attributes."""
        super().mkdir(*args, **kwargs)
        (self / "generation").write_text("0\n")
        (self / "provider").write_bytes(self.provider)

    def write_bytes(self, data: Any) -> int:
        """Write an attribute; ``inblob`` makes ``outblob`` and counts the generation up."""
        written = super().write_bytes(data)
        if self.name == "inblob":
            generation = self.parent / "generation"
            count = int(generation.read_text()) + (2 if self.interfere else 1)
            generation.write_text(f"{count}\n")
            (self.parent / "outblob").write_bytes(type(self).make_quote(bytes(data)))
        return written

    def rmdir(self) -> None:
        """Remove the folder; its attributes go with it."""
        for name in os.listdir(self):
            os.unlink(self / name)
        super().rmdir()
