"""What a request asks for, in the words of access policies: an action on a model and version.

The cases stand in the order in which the routes are tried (``inference``, ``management``, ``oip``), so that
the model that is asked about is the one that answers. What is not listed is ``manage``: a route that nobody
thought of here is refused to those who may only predict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cloister.policy.requests import Action

_READS = ("GET", "HEAD", "OPTIONS")


class Asked(NamedTuple):
    """An action, and what it is about; empty where nothing is named."""

    action: Action
    model: str = ""
    version: str = ""


def asked_at(method: str, segments: list[str], *, metrics_port: bool = False) -> Asked | None:
    """What a path asks for; None for health, which anybody may ask for.

    ``/invocations`` names its model elsewhere: the answer has none.
    """
    reads = method in _READS
    if metrics_port:
        return Asked("metrics")
    match segments:
        case ["ping", *_]:
            return None
        case ["predictions" | "explanations" as what, name, *rest]:
            return _answer(method, name, rest[0] if rest else "", explain=what == "explanations")
        case ["invocations"]:
            return _answer(method, "")
        case ["models", name, "invoke"]:
            return _answer(method, name)
        case [name, "predict"] if name != "models":
            return _answer(method, name)
        case [name, version, "predict"] if name not in ("models", "v1", "v2"):
            return _answer(method, name, version)
        case ["v1", "models", last] if ":predict" in last or ":explain" in last:
            return _answer(method, last.partition(":")[0], explain=":predict" not in last)
        case ["v1", "models", last]:
            return Asked("describe", last.partition(":")[0])
        case ["v2", *rest]:
            return _asked_open_inference(rest)
        case ["models"]:
            return Asked("describe" if reads else "manage")
        case ["models", name]:
            return Asked("describe" if reads else "manage", name)
        case ["models", name, version, *_]:
            return Asked("describe" if reads else "manage", name, version)
        case ["metrics", *_]:
            return Asked("metrics")
    return Asked("manage")


def asked_by_call(method: str, model: str, version: str) -> Asked | None:
    """What a gRPC method asks for; None for health."""
    if method in ("Ping", "ServerLive", "ServerReady"):
        return None
    return Asked(_CALLS.get(method, "manage"), model, version)


_CALLS: dict[str, Action] = {
    "Predictions": "predict",
    "StreamPredictions": "predict",
    "StreamPredictions2": "predict",
    "ModelInfer": "predict",
    "ModelStreamInfer": "predict",
    "Check": "describe",
    "Watch": "describe",
    "ModelReady": "describe",
    "ModelMetadata": "describe",
    "ServerMetadata": "describe",
    "DescribeModel": "describe",
    "ListModels": "describe",
}


def _answer(method: str, model: str, version: str = "", *, explain: bool = False) -> Asked:
    if method == "OPTIONS":
        return Asked("describe", model, version)
    return Asked("explain" if explain else "predict", model, version)


def _asked_open_inference(rest: list[str]) -> Asked | None:
    match rest:
        case ["health", *_]:
            return None
        case ["models", name, "versions", version, *what]:
            pass
        case ["models", name, *what]:
            version = ""
        case _:
            return Asked("describe")
    if what and what[0] in ("infer", "explain"):
        return Asked("predict" if what[0] == "infer" else "explain", name.partition(":")[0], version)
    return Asked("describe", name, version)
