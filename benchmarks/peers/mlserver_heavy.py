"""ResNet-50 or BERT-Large as a runtime of MLServer, eager PyTorch; see `rig/heavy_servers.py`."""

import json
import os

from heavy import open_model
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import InferenceResponse


class HeavyRuntime(MLModel):
    """MLServer stacks the inputs of a batch itself, and takes its answer apart."""

    async def load(self) -> bool:
        self.model = open_model(*(os.environ[f"HEAVY_{name}"] for name in ("TASK", "FOLDER", "FORM")))
        return True

    async def predict(self, payload):
        tensor = payload.inputs[0]
        if tensor.datatype == "BYTES":
            rows = [self.model.decode(body) for body in Base64Codec.decode_input(tensor)]
        else:
            rows = list(NumpyCodec.decode_input(tensor))
        answers = [json.dumps(answer) for answer in self.model.predict(rows)]
        return InferenceResponse(model_name=self.name, outputs=[StringCodec.encode_output("output", answers)])
