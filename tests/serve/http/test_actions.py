"""What a request asks for, as access policies see it."""

from __future__ import annotations

import pytest

from cloister.serve.http.actions import asked_at, asked_by_call
from cloister.serve.http.route import split_path


@pytest.mark.parametrize(
    ("method", "path", "action", "model", "version"),
    [
        ("POST", "/predictions/m", "predict", "m", ""),
        ("GET", "/predictions/m/2", "predict", "m", "2"),
        ("DELETE", "/predictions/m/2/more", "predict", "m", "2"),
        ("OPTIONS", "/predictions/m", "describe", "m", ""),
        ("POST", "/explanations/m/2", "explain", "m", "2"),
        ("POST", "/models/m/invoke", "predict", "m", ""),
        ("POST", "/m/predict", "predict", "m", ""),
        ("POST", "/m/2/predict", "predict", "m", "2"),
        ("POST", "/metrics/predict", "predict", "metrics", ""),
        ("POST", "/v1/models/m:predict", "predict", "m", ""),
        ("POST", "/v1/models/m:explain", "explain", "m", ""),
        ("GET", "/v1/models/m", "describe", "m", ""),
        ("POST", "/v2/models/m/infer", "predict", "m", ""),
        ("POST", "/v2/models/m:x/infer", "predict", "m", ""),
        ("POST", "/v2/models/m/versions/2/explain", "explain", "m", "2"),
        ("GET", "/v2/models/m/ready", "describe", "m", ""),
        ("GET", "/v2", "describe", "", ""),
        ("GET", "/models", "describe", "", ""),
        ("POST", "/models", "manage", "", ""),
        ("GET", "/models/m", "describe", "m", ""),
        ("DELETE", "/models/m/2", "manage", "m", "2"),
        ("PUT", "/models/m/2/set-default", "manage", "m", "2"),
        ("DELETE", "/models/m/2/set-default", "manage", "m", "2"),
        ("GET", "/metrics", "metrics", "", ""),
        ("POST", "/workflows", "manage", "", ""),
        ("GET", "/what/ever/this/is", "manage", "", ""),
    ],
)
def test_routes(method: str, path: str, action: str, model: str, version: str) -> None:
    """Each route has its action and its model; what is unknown is for managers."""
    assert asked_at(method, split_path(path)) == (action, model, version)


def test_health_is_public() -> None:
    """Who asks for health needs no permission, by HTTP or gRPC."""
    for path in ("/ping", "/v2/health/live", "/v2/health/ready"):
        assert asked_at("GET", split_path(path)) is None
    for method in ("Ping", "ServerLive", "ServerReady"):
        assert asked_by_call(method, "", "") is None


def test_calls() -> None:
    """gRPC methods have the actions of their routes; one that nobody thought of is for managers."""
    assert asked_by_call("Predictions", "m", "2") == ("predict", "m", "2")
    assert asked_by_call("ModelInfer", "m", "") == ("predict", "m", "")
    assert asked_by_call("DescribeModel", "m", "") == ("describe", "m", "")
    for method in ("RegisterModel", "UnregisterModel", "ScaleWorker", "SetDefault", "Novelty"):
        assert asked_by_call(method, "m", "") == ("manage", "m", "")


def test_metrics_port() -> None:
    """Whatever is asked there is about metrics."""
    assert asked_at("GET", ["metrics", "predict"], metrics_port=True) == ("metrics", "", "")
