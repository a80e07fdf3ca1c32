"""Fuzz requests of the Open Inference Protocol and workers' answers to gRPC: only declared errors may escape.

The first two bytes choose the parser and the length of the JSON part.

Run: ``python fuzz/fuzz_oip.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import contextlib
import sys

from google.protobuf.message import DecodeError

from cloister.errors import MalformedInput, ModelFailed
from cloister.serve.grpc.convert import to_http, to_message
from cloister.serve.grpc.messages import message
from cloister.serve.oip.request import parse_request

_Request = message("inference.ModelInferRequest")


def one_input(data: bytes) -> None:
    """Read a request of HTTP, one of gRPC, or an answer."""
    if len(data) < 2:
        return
    choice, length, rest = data[0] % 4, data[1], data[2:]
    with contextlib.suppress(MalformedInput, ModelFailed):
        if choice == 0:
            parse_request(rest)
        elif choice == 1:
            parse_request(rest, length)
        elif choice == 2:
            with contextlib.suppress(DecodeError):
                body, header_bytes = to_http(_Request.FromString(rest))
                parse_request(body, header_bytes)
        else:
            to_message(rest, length, typed=bool(length & 1))


def main() -> None:
    """Fuzz until stopped."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
