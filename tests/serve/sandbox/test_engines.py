"""What serves models works in the sandbox: each engine that is installed is imported there and infers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import pytest

from cloister.serve.sandbox.plan import plan_for
from cloister.settings import ServeSettings
from tests.serve.sandbox.inside import run_confined

CODE = {
    "numpy": """
import numpy as np
square = np.random.rand(300, 300)
np.save("a.npy", square)
result = float((np.load("a.npy", mmap_mode="r") @ square).sum()) > 0
""",
    "PIL": """
import io
from PIL import Image
raw = io.BytesIO()
Image.new("RGB", (64, 64)).save(raw, "JPEG")
result = Image.open(io.BytesIO(raw.getvalue())).convert("L").resize((8, 8)).size == (8, 8)
""",
    "torch": """
import torch
network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Flatten(), torch.nn.LazyLinear(4))
image = torch.rand(4, 3, 32, 32)
answer = network(image)
torch.save(network.state_dict(), "m.pt")
network.load_state_dict(torch.load("m.pt", mmap=True))
with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
    network(image)
result = bool(torch.allclose(network(image), answer))
""",
    "sklearn": """
import numpy as np
from sklearn.ensemble import RandomForestClassifier
import joblib, threading
assert joblib.effective_n_jobs(2) == 2 or not Path("/dev/shm").exists() or "mounts" not in state.files
forest = RandomForestClassifier(n_estimators=5, n_jobs=2).fit(np.random.rand(40, 4), [0, 1] * 20)
result = len(forest.predict(np.random.rand(3, 4))) == 3
""",
    "onnxruntime": """
import numpy as np
import onnxruntime
from onnxruntime.datasets import get_example
session = onnxruntime.InferenceSession(get_example("sigmoid.onnx"), providers=["CPUExecutionProvider"])
result = session.run(None, {"x": np.ones((3, 4, 5), "f")})[0].shape == (3, 4, 5)
""",
    "openvino": """
import numpy as np
from cloister.engines.openvino import import_openvino
openvino = import_openvino()
from openvino import opset13
value = opset13.parameter([2, 300], np.float32)
model = openvino.Model([opset13.relu(opset13.matmul(value, np.ones((300, 4), "f"), False, False))], [value])
core = openvino.Core()
core.set_property({"CACHE_DIR": "cache"})
compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
result = compiled(np.ones((2, 300), "f"))[0].shape == (2, 4)
""",
    "sqlite3": """
import asyncio, datetime, locale, mimetypes, shutil, sqlite3, ssl, uuid, zipfile
from concurrent.futures import ThreadPoolExecutor
sqlite3.connect("x.db").execute("create table t (a)")
ssl.create_default_context()
asyncio.run(asyncio.to_thread(uuid.uuid4))
with ThreadPoolExecutor(4) as pool:
    list(pool.map(abs, range(9)))
with zipfile.ZipFile("z.zip", "w") as archive:
    archive.writestr("a/b", "x")
zipfile.ZipFile("z.zip").extractall("out")
shutil.copytree("out", "copy")
result = Path("copy/a/b").read_text() == "x"
""",
}


@pytest.mark.parametrize("layers", [[], ["namespaces"]], ids=["all layers", "no namespaces"])
@pytest.mark.parametrize("engine", CODE)
def test_engine_infers(engine: str, layers: list[str], tmp_path: Path) -> None:
    """The engine is imported, loads a model from the scratch folder and answers."""
    if importlib.util.find_spec(engine) is None:
        pytest.skip(f"{engine} is not installed")
    # The limits that a worker has where nothing is set.
    plan = msgspec.structs.replace(plan_for(ServeSettings(sandbox="best-effort")), scratch_bytes=64 << 20)
    assert plan.memory_bytes > 1 << 30
    state, worked = run_confined(tmp_path, CODE[engine], plan=plan, without=layers)
    assert worked is True, state
