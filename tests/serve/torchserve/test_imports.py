"""The ``ts`` import paths are there for handlers, and for nobody else."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from cloister.serve import torchserve
from cloister.serve.torchserve.context import Context, RequestProcessor
from tests.serve.handlers import import_state


@pytest.fixture(autouse=True)
def _import_state() -> Iterator[None]:
    with import_state():
        yield


def test_not_there_before() -> None:
    """Outside of a worker there is no ``ts``."""
    assert importlib.util.find_spec("ts") is None


@pytest.mark.parametrize("name", sorted(torchserve.MODULES))
def test_every_path(name: str) -> None:
    """Each documented path can be imported."""
    pytest.importorskip("torch")
    pytest.importorskip("PIL")
    torchserve.install()
    assert importlib.import_module(name).__doc__


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("ts.context", "Context RequestProcessor"),
        ("ts.handler_utils.timer", "timed"),
        ("ts.handler_utils.utils", "import_class send_intermediate_predict_response"),
        ("ts.protocol.otf_message_handler", "send_intermediate_predict_response"),
        ("ts.handler_utils.micro_batching", "MicroBatching"),
        ("ts.metrics.dimension", "Dimension"),
        ("ts.metrics.metric_type_enum", "MetricTypes"),
        ("ts.metrics.metrics_store", "MetricsStore"),
        ("ts.metrics.metric_cache_yaml_impl", "MetricsCacheYamlImpl"),
        ("ts.metrics.unit", "Units"),
        ("ts.service", "emit_metrics PREDICTION_METRIC PredictionException"),
        (
            "ts.torch_handler.base_handler",
            "BaseHandler XLA_AVAILABLE IPEX_AVAILABLE ONNX_AVAILABLE PT2_AVAILABLE PROFILER_AVAILABLE",
        ),
        ("ts.torch_handler.contractions", "CONTRACTION_MAP"),
        (
            "ts.utils.util",
            "PredictionException list_classes_from_module load_label_mapping map_class_to_label "
            "get_yaml_config check_valid_pt2_backend PT2Backend CLEANUP_REGEX deprecated",
        ),
    ],
)
def test_names(module: str, names: str) -> None:
    """Each path has the names that handlers take from it."""
    pytest.importorskip("torch")
    torchserve.install()
    found = importlib.import_module(module)
    assert [name for name in names.split() if not hasattr(found, name)] == []


def test_inner_names_of_the_context() -> None:
    """What public handlers take from a context by its inner names is the same as by the others."""
    context = Context("m", "/m", None, 1, None, "0.12.0")
    assert context._system_properties is context.system_properties
    context.request_processor = [RequestProcessor({})]
    assert context._request_processor is context.request_processor


def test_unknown_paths_say_why() -> None:
    """A path that is not there fails with its name and the reason."""
    torchserve.install()
    torchserve.install()
    with pytest.raises(ModuleNotFoundError, match=r"ts\.nothing of TorchServe is not among"):
        importlib.import_module("ts.nothing")


def test_torchvision_stand_in() -> None:
    """Without torchvision its transforms are there, and everything else says that it is not."""
    pytest.importorskip("torch")
    pytest.importorskip("PIL")
    if importlib.util.find_spec("torchvision") is not None:
        pytest.skip("torchvision is installed")
    torchserve.install()
    transforms = importlib.import_module("torchvision.transforms")
    assert transforms.Compose([]) is not None
    with pytest.raises(ModuleNotFoundError, match="torchvision is not installed"):
        importlib.import_module("torchvision.models")
