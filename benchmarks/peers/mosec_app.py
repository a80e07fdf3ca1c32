"""The tiny model in mosec. Environment: BATCH_SIZE, DELAY_MS; arguments are mosec's own."""

import os

from mosec import Server, Worker
from tiny import Tiny

BATCH_SIZE = int(os.environ["BATCH_SIZE"])


class Inference(Worker):
    """One input at a time, or a list of them where batching is on."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Tiny()

    def forward(self, data):
        return self.model.predict(data) if BATCH_SIZE > 1 else self.model.predict([data])[0]


if __name__ == "__main__":
    server = Server()
    batching = {"max_batch_size": BATCH_SIZE, "max_wait_time": int(os.environ["DELAY_MS"])}
    server.append_worker(Inference, num=1, **(batching if BATCH_SIZE > 1 else {}))
    server.run()
