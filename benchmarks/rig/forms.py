"""Makes ResNet-50 and BERT-Large at true size, with random weights, in the forms that are measured.

=============== ============================================================
file            content
=============== ============================================================
weights.pt      state of the PyTorch model, float32
fp32.xml, .bin  OpenVINO, float32; at BF16 too, which is a choice at loading
int8.xml, .bin  OpenVINO, quantized by NNCF after training
=============== ============================================================

Random weights have the speed of trained ones and say nothing about accuracy. Both models take batches of any
size; ``input_ids`` is the only input of BERT-Large, as all its tokens count.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy

APPS = Path(__file__).resolve().parents[1] / "peers"
sys.path.insert(0, str(APPS))
import heavy  # noqa: E402 (shared with the peers, whose interpreters have nothing else of this folder)

TASKS = ("resnet50", "bert-large")
PRECISIONS = ("fp32", "bf16", "int8")
CALIBRATION = {"resnet50": 32, "bert-large": 8}
"""How many inputs the ranges of activations are taken from."""


def make_picture(width: int = 640, height: int = 480, seed: int = 0) -> bytes:
    """A JPEG that is neither empty nor noise: coloured rings."""
    from PIL import Image

    y, x = numpy.mgrid[-1 : 1 : height * 1j, -width / height : width / height : width * 1j]
    distance = numpy.hypot(x, y)
    rings = numpy.stack([numpy.sin(distance * frequency + seed) for frequency in (10, 17, 29)], axis=-1)
    out = io.BytesIO()
    Image.fromarray(((rings + 1) * 127.5).astype("uint8")).save(out, "JPEG", quality=90)
    return out.getvalue()


def make_tokens(seed: int = 0) -> str:
    """The JSON of a text of ``SEQUENCE`` tokens."""
    ids = numpy.random.default_rng(seed).integers(1000, 30_000, heavy.SEQUENCE)
    return json.dumps({"input_ids": ids.tolist()})


def make_body(task: str, seed: int = 0) -> bytes:
    """One request."""
    return make_picture(seed=seed) if task == "resnet50" else make_tokens(seed).encode()


def ensure_forms(task: str, environments: Path) -> Path:
    """The folder of a model's forms; made on first use, in a process of its own because of its memory."""
    folder = environments / "models" / task
    if not (folder / "ready").exists():
        print(f"making {task} in {folder} (once; some minutes)", file=sys.stderr, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, __file__, task, str(folder)], check=True)
        (folder / "ready").touch()
    return folder


def _make(task: str, folder: Path) -> None:
    import nncf
    import openvino
    import torch

    torch.manual_seed(50)
    model = heavy.build(task)
    torch.save(model.state_dict(), folder / "weights.pt")
    inputs = [heavy.DECODE[task](make_body(task, seed))[None] for seed in range(CALIBRATION[task])]
    example = torch.from_numpy(inputs[0])
    name = "pixel_values" if task == "resnet50" else "input_ids"
    shape = openvino.PartialShape([-1, *inputs[0].shape[1:]])
    with torch.inference_mode():
        wanted = model(example).logits.numpy()
        converted = openvino.convert_model(_Logits(model), example_input=example, input=[shape])
    converted.inputs[0].set_names({name})
    converted.outputs[0].set_names({"logits"})
    openvino.save_model(converted, folder / "fp32.xml", compress_to_fp16=False)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # where the processor has BF16, that is what OpenVINO takes
    found = openvino.compile_model(folder / "fp32.xml", "CPU", exact)(inputs[0])[0]
    if abs(found - wanted).max() > 1e-2 * abs(wanted).max():
        raise SystemExit(f"{task}: OpenVINO differs from PyTorch by {abs(found - wanted).max()}")
    kind: dict[str, Any] = {"model_type": nncf.ModelType.TRANSFORMER} if task == "bert-large" else {}
    quantized = nncf.quantize(
        converted, nncf.Dataset(inputs), preset=nncf.QuantizationPreset.MIXED, subset_size=len(inputs), **kind
    )
    openvino.save_model(quantized, folder / "int8.xml", compress_to_fp16=False)


def _Logits(model: Any) -> Any:  # noqa: N802 (a class, made where torch is there)
    import torch

    class Logits(torch.nn.Module):
        """The logits alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Any) -> Any:
            return self.model(inputs).logits

    return Logits()


if __name__ == "__main__":
    _make(sys.argv[1], Path(sys.argv[2]))
