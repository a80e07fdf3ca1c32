"""A stand-in for the pseudo-files below Gramine's ``/dev/attestation``, with their semantics.

``quote`` is made when it is read, over what was last written to ``user_report_data``; the whole enclave
shares both. Short report data is padded with zeros, longer than 64 bytes is refused.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path, PosixPath
from typing import Any, ClassVar

REPORT_DATA_BYTES = 64


class FakeGramineFolder(PosixPath):
    """The folder; ``create`` makes its files."""

    make_quote: ClassVar[Callable[[bytes], bytes]] = staticmethod(lambda report_data: b"")
    interfere: ClassVar[bool] = False
    """Whether another thread of the enclave writes to ``user_report_data`` in between."""
    failure: ClassVar[int] = 0
    """Error number of the next reading of ``quote``."""

    @classmethod
    def create(cls, folder: Path, attestation_type: str = "dcap") -> FakeGramineFolder:
        """The pseudo-files of an enclave."""
        files = {"attestation_type": attestation_type.encode(), "user_report_data": bytes(64), "quote": b""}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        return cls(folder)

    def write_bytes(self, data: Any) -> int:
        """Write a pseudo-file."""
        content = bytes(data)
        if self.name != "user_report_data":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if len(content) > REPORT_DATA_BYTES:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        super().write_bytes(content.ljust(REPORT_DATA_BYTES, b"\x00"))
        return len(content)

    def read_bytes(self) -> bytes:
        """Read a pseudo-file."""
        if self.name != "quote":
            return super().read_bytes()
        if self.failure:
            raise OSError(self.failure, os.strerror(self.failure))
        report_data = (
            bytes(64) if self.interfere else PosixPath(self.parent / "user_report_data").read_bytes()
        )
        return type(self).make_quote(report_data)
