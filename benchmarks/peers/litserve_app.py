"""The tiny model in LitServe. Arguments: port, batch size, longest wait in ms."""

import sys

import litserve
from tiny import Tiny


class Inference(litserve.LitAPI):
    """One input at a time, or a list of them where batching is on."""

    def setup(self, device):
        self.model = Tiny()

    def decode_request(self, request):
        return request

    def predict(self, x):
        return self.model.predict(x) if self.max_batch_size > 1 else self.model.predict([x])[0]

    def batch(self, inputs):
        return list(inputs)

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return output


if __name__ == "__main__":
    port, batch_size, delay_ms = (int(value) for value in sys.argv[1:4])
    batching = {"max_batch_size": batch_size, "batch_timeout": delay_ms / 1000} if batch_size > 1 else {}
    server = litserve.LitServer(Inference(**batching), accelerator="cpu", workers_per_device=1)
    server.run(
        host="127.0.0.1", port=port, generate_client_file=False, num_api_servers=1, log_level="warning"
    )
