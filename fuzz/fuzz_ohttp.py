"""Fuzz sealed requests: Binary HTTP, capsules, chunks, key configurations; only declared errors may escape.

The first byte chooses the parser. Two of them get valid encryption around the input, which no fuzzer finds.

Run: ``python fuzz/fuzz_ohttp.py [corpus folder] [libFuzzer options]``, with atheris installed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

from cloister.crypto.hpke import PrivateKey
from cloister.errors import BadCiphertext, MalformedInput, Replayed, UnknownKeyConfig
from cloister.ohttp import bhttp, chunked
from cloister.ohttp.bhttp_stream import Reader
from cloister.ohttp.capsule import CapsuleHeader, KeyConfig, parse_key_configs
from cloister.ohttp.gateway import Gateway, GatewayKey
from cloister.serve.http.gateway import GatewayEndpoint
from cloister.serve.http.messages import Request, Response

_GATEWAY = Gateway((GatewayKey(1, PrivateKey.generate()),))
_CONFIG = KeyConfig.parse(_GATEWAY.key_config)
_ENDPOINT = GatewayEndpoint(_GATEWAY, lambda _: _never())


async def _never() -> Response:
    raise AssertionError


def _read_in_pieces(kind: type[bhttp.Request] | type[bhttp.Response], data: bytes) -> None:
    size = 1 + data[0] % 64 if data else 1
    reader: Any = Reader(kind)
    for at in range(1, len(data), size):
        reader.receive(data[at : at + size])
    reader.finish()


def _upload(data: bytes) -> Request | Response | None:
    """What is inside a chunked request whose sealing is right."""
    sealer = chunked.RequestSealer(_CONFIG)
    with _ENDPOINT.open_stream() as upload:
        raw = sealer.begin() + sealer.seal(data[:100] or b"x") + sealer.seal(data[100:], final=True)
        return upload.receive(raw) or upload.finish()


def _open_stream(data: bytes) -> None:
    stream = _GATEWAY.open_stream()
    for at in range(0, len(data), 7):
        stream.receive(data[at : at + 7])
    stream.finish()


_PARSERS: tuple[Callable[[bytes], object], ...] = (
    bhttp.parse_request,
    bhttp.parse_response,
    lambda data: _read_in_pieces(bhttp.Request, data),
    lambda data: _read_in_pieces(bhttp.Response, data),
    CapsuleHeader.parse,
    KeyConfig.parse,
    parse_key_configs,
    _GATEWAY.open,
    _open_stream,
    lambda data: _open_stream(chunked.RequestSealer(_CONFIG).begin() + data),
    _upload,
)


def one_input(data: bytes) -> None:
    """Give the input, without its first byte, to the parser that this byte chooses."""
    if data:
        with contextlib.suppress(MalformedInput, BadCiphertext, UnknownKeyConfig, Replayed):
            _PARSERS[data[0] % len(_PARSERS)](data[1:])


def main() -> None:
    """Fuzz until stopped."""
    import atheris  # type: ignore[import-untyped,import-not-found,unused-ignore]

    atheris.instrument_all()
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
