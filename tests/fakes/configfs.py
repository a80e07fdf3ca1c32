"""A stand-in for the kernel's configfs-tsm folder, with its semantics.

Making a folder makes its attributes. A write to an attribute counts the generation up and takes effect when
the file is closed, where errors are lost. The report is made when ``outblob`` is read, from what was written
last.

Source: Linux, drivers/virt/coco/tsm.c.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import PosixPath
from typing import Any, ClassVar

MAX_INBLOB_BYTES = 64


class FakeConfigfsPath(PosixPath):
    """A path below which ``mkdir``, reading and writing attributes, and ``rmdir`` do what the kernel does."""

    provider: ClassVar[bytes] = b"tdx_guest\n"
    make_quote: ClassVar[Callable[[bytes], bytes]] = staticmethod(lambda report_data: b"")
    auxblob: ClassVar[bytes | None] = None
    """None: the provider has no such attribute."""
    privlevel_floor: ClassVar[int | None] = None
    interfere: ClassVar[list[str]] = []
    """For each report to come: ``before`` or ``after`` if another process writes before or after the report
    is made, ``lost`` if our own write has no effect."""
    failures: ClassVar[list[int]] = []
    """Error numbers of the next readings of ``outblob``; 0 for none."""
    made: ClassVar[list[bytes]] = []
    """Report data of all reports that the hardware was asked for."""

    def mkdir(self, *args: Any, **kwargs: Any) -> None:
        """Make the report's folder and its attributes; ENXIO where no provider has registered."""
        if not self.provider:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        super().mkdir(*args, **kwargs)
        self._set("generation", b"0\n")
        self._set("provider", self.provider)
        self._set("inblob", b"")
        self._set("outblob", b"")
        if self.auxblob is not None:
            self._set("auxblob", b"")
        if self.privlevel_floor is not None:
            self._set("privlevel", b"")
            self._set("privlevel_floor", b"%d\n" % self.privlevel_floor)

    def write_bytes(self, data: Any) -> int:
        """Write an attribute."""
        content = bytes(data)
        if self.name == "privlevel" and not (self.privlevel_floor or 0) <= int(content) <= 3:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        if self.name not in ("inblob", "privlevel"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        event = ""
        if self.name == "inblob" and self.interfere and self.interfere[0] in ("before", "lost"):
            event = self.interfere.pop(0)
        if event != "lost" and len(content) <= MAX_INBLOB_BYTES:
            super().write_bytes(content)
            self._count()
        if event == "before":
            self._count()
        return len(content)

    def read_bytes(self) -> bytes:
        """Read an attribute."""
        if self.name in ("inblob", "privlevel"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if self.name == "outblob":
            return self._make_report()
        if self.name == "auxblob":
            return self.auxblob or b""
        return super().read_bytes()

    def rmdir(self) -> None:
        """Remove the folder; its attributes go with it."""
        for name in os.listdir(self):
            os.unlink(self / name)
        super().rmdir()

    def _make_report(self) -> bytes:
        failure = self.failures.pop(0) if self.failures else 0
        if failure:
            raise OSError(failure, os.strerror(failure))
        report_data = PosixPath(self.parent / "inblob").read_bytes()
        if not report_data:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.made.append(report_data)
        if self.interfere[:1] == ["after"]:
            self.interfere.pop(0)
            self._count()
        return type(self).make_quote(report_data)

    def _count(self) -> None:
        generation = PosixPath(self.parent / "generation")
        generation.write_bytes(b"%d\n" % (int(generation.read_bytes()) + 1))

    def _set(self, name: str, content: bytes) -> None:
        PosixPath(self / name).write_bytes(content)
