"""One exchange in a worker: the request for the handler, and the handler's result for the caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.serve.frames import Headers
from cloister.serve.oip.answer import BINARY_TYPE, JSON_TYPE, render_answer
from cloister.serve.oip.marks import HEADER_LENGTH
from cloister.serve.oip.request import InferRequest, parse_header_length, parse_request

_JSON: Headers = [(b"content-type", JSON_TYPE)]  # one list for all answers: it is encoded once


@dataclass(frozen=True, slots=True)
class OipExchange:
    """A request of the Open Inference Protocol on its way through a handler."""

    request: InferRequest
    model_name: str
    model_version: str

    @classmethod
    def open(
        cls, model: tuple[str, str], headers: Mapping[str, str], body: bytes | memoryview
    ) -> OipExchange:
        """Decode a request.

        Args:
            model: name and version, as the answer repeats them.
        Raises:
            MalformedInput: not a request.
        """
        header_bytes = parse_header_length(headers.get(HEADER_LENGTH, ""))
        return cls(parse_request(body, header_bytes), *model)

    @property
    def fields(self) -> dict[str, Any]:
        """The row that the handler gets."""
        return {"body": self.request}

    def render(self, result: Any) -> tuple[bytes, Headers]:
        """Body and headers of the answer; the headers may be shared, so never to be changed.

        Raises:
            MalformedInput: the caller asked for an output that is not there.
            TypeError, ValueError: the result cannot be expressed as tensors.
        """
        answer = render_answer(
            self.request, result, model_name=self.model_name, model_version=self.model_version
        )
        if answer.header_bytes is None:
            return answer.body, _JSON
        length = (HEADER_LENGTH.encode(), str(answer.header_bytes).encode())
        return answer.body, [(b"content-type", BINARY_TYPE), length]
