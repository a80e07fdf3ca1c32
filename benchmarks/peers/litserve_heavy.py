"""ResNet-50 or BERT-Large in LitServe, eager, in batches. Argument: port; see `rig/heavy_servers.py`."""

import base64
import os
import sys

import litserve
from heavy import open_model


class Inference(litserve.LitAPI):
    """Pictures are base64 in JSON, token ids a list."""

    def setup(self, device):
        self.model = open_model(*(os.environ[f"HEAVY_{name}"] for name in ("TASK", "FOLDER", "FORM")))

    def decode_request(self, request):
        return self.model.decode(base64.b64decode(request["image"]) if "image" in request else request)

    def batch(self, inputs):
        return list(inputs)

    def predict(self, rows):
        return self.model.predict(rows)

    def unbatch(self, answers):
        return list(answers)

    def encode_response(self, answer):
        return answer


if __name__ == "__main__":
    delay_s = int(os.environ["DELAY_MS"]) / 1000
    api = Inference(max_batch_size=int(os.environ["BATCH_SIZE"]), batch_timeout=delay_s)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=120)
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        generate_client_file=False,
        num_api_servers=1,
        log_level="warning",
    )
