"""BigDL Nano's users find their words, and what these do."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cloister.errors import ConfigError, MalformedInput
from cloister.optimize import InferenceOptimizer
from cloister.optimize.workspace import PREFIX
from tests.optimize import models

pytest.importorskip("nncf")
pytest.importorskip("cloudpickle")


def right(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A metric as Nano's users write them: of tensors."""
    return (predictions.argmax(-1) == targets).float().mean()


@pytest.fixture(scope="module")
def optimized() -> Iterator[tuple[InferenceOptimizer, nn.Module]]:
    """A net of a class that only this test knows, optimized with a metric of its own."""

    class Local(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = models.picture_net()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

    batches = [(batch, target) for batch, target in models.pictures()]
    optimizer, net = InferenceOptimizer(), Local().eval()
    optimizer.optimize(
        net,
        training_data=batches,
        validation_data=batches,
        metric=right,
        direction="max",
        thread_num=1,
        includes=["openvino_fp32", "openvino_int8"],
        latency_sample_num=10,
        concurrency=2,
    )
    yield optimizer, net
    optimizer.close()


def test_the_summary_has_all_methods(
    optimized: tuple[InferenceOptimizer, nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    """The table that Nano printed, with this search's rows."""
    optimizer, _ = optimized
    optimizer.summary()
    shown = capsys.readouterr().out
    assert "openvino_fp32" in shown
    assert optimizer.optimized_model_dict["openvino_int8"]["status"] == "successful"
    assert optimizer.result.row("openvino_fp32").metric == 1.0


def test_the_best_model_is_called_like_the_original(
    optimized: tuple[InferenceOptimizer, nn.Module],
) -> None:
    """Tensors in, a tensor out, nearly the original's."""
    optimizer, net = optimized
    model, name = optimizer.get_best_model(accelerator="openvino", precision="fp32", accuracy_criterion=0.01)
    assert name == "openvino_fp32"
    x = torch.rand(3, 1, 16, 16)
    with InferenceOptimizer.get_context(model), torch.no_grad():
        torch.testing.assert_close(model(x), net(x), atol=1e-4, rtol=1e-3)
        assert torch.get_num_threads() == 1
    assert optimizer.get_model("original") is net
    with pytest.raises(ConfigError, match="was not tried"):
        optimizer.get_model("bf16")
    with pytest.raises(ConfigError, match="no method fits"):
        optimizer.get_best_model(accelerator="onnxruntime")
    model.close()


def test_quantize_save_and_load(tmp_path: Path) -> None:
    """INT8 from real data outlives its optimizer in a folder, and takes inputs by name."""
    model = models.two_inputs().eval()
    quantized = InferenceOptimizer.quantize(model, calib_data=models.sentences(), thread_num=1)
    InferenceOptimizer.save(quantized, tmp_path / "int8")
    quantized.close()
    assert quantized.description["streams"] == 1, "one request after the other is to have all threads"
    again = InferenceOptimizer.load(tmp_path / "int8")
    inputs: dict[str, Any] = models.sentences()[2]
    found = again(**inputs)
    with torch.no_grad():
        wanted = model(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    assert set(found) == {"logits", "hidden"}
    cosine = np.sum(found["logits"] * wanted["logits"].numpy()) / (
        np.linalg.norm(found["logits"]) * np.linalg.norm(wanted["logits"])
    )
    assert cosine > 0.98
    np.testing.assert_array_equal(again(inputs)["logits"], found["logits"])
    with pytest.raises(MalformedInput, match="attention_mask"):
        again(inputs["input_ids"])
    again.close()


def test_trace_and_the_originals_parameters(tmp_path: Path) -> None:
    """Another engine without quantization; parameters of an original are saved and loaded as such."""
    net = models.picture_net().eval()
    x = torch.rand(2, 1, 16, 16)
    traced = InferenceOptimizer.trace(net, input_sample=x, accelerator="openvino")
    with torch.no_grad():
        torch.testing.assert_close(traced(x), net(x), atol=1e-4, rtol=1e-3)
    traced.close()
    InferenceOptimizer.save(net, tmp_path / "original")
    other = nn.Sequential(*models.picture_net().children())
    nn.init.zeros_(other[0].weight)
    assert InferenceOptimizer.load(tmp_path / "original", other)[0].weight.equal(net[0].weight)


def test_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing an optimizer removes its folder."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    optimizer = InferenceOptimizer()
    optimizer.optimize(
        models.picture_net(), training_data=[next(models.pictures())[0]], thread_num=1,
        includes=["original"], latency_sample_num=2, concurrency=1,
    )  # fmt: skip
    assert list(tmp_path.glob(f"{PREFIX}*"))
    optimizer.close()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="nothing was optimized"):
        optimizer.summary()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"precision": "int4", "calib_data": [torch.zeros(1, 2)]}, "precision"),
        ({"accelerator": "tpu", "calib_data": [torch.zeros(1, 2)]}, "accelerator"),
        ({}, "needs data"),
    ],
)
def test_wrong_words(arguments: dict[str, Any], word: str) -> None:
    """They are refused in words before anything is made."""
    with pytest.raises(ConfigError, match=word):
        InferenceOptimizer.quantize(nn.Identity(), **arguments)


def test_accelerators_and_precisions_that_no_method_has() -> None:
    """They do not mean that all methods are wanted."""
    with pytest.raises(ConfigError, match="no method is of these"):
        InferenceOptimizer().optimize(
            nn.Identity(), training_data=[torch.zeros(1, 2)], accelerator=["jit"], precision=["int8"]
        )
