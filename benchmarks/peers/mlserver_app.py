"""The tiny model as a runtime of MLServer."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from tiny import Tiny


class TinyRuntime(MLModel):
    """MLServer stacks the inputs of a batch itself."""

    async def load(self) -> bool:
        self.model = Tiny()
        return True

    async def predict(self, payload):
        rows = NumpyCodec.decode_input(payload.inputs[0])
        import numpy

        answer = numpy.array(self.model.predict(rows), dtype="float32")
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("output", answer)])
