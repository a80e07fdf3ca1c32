"""ResNet-50 or BERT-Large in mosec; what and how comes from the environment, see `rig/heavy_servers.py`."""

import os

from heavy import open_model
from mosec import Server, Worker

BATCH_SIZE, WORKERS = int(os.environ["BATCH_SIZE"]), int(os.environ["HEAVY_WORKERS"])


class Inference(Worker):
    """Requests as they come, several at a time where batching is on."""

    def __init__(self) -> None:
        super().__init__()
        if WORKERS > 1:  # one core for each
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(0, {cores[(self.worker_id - 1) % len(cores)]})
        self.model = open_model(*(os.environ[f"HEAVY_{name}"] for name in ("TASK", "FOLDER", "FORM")))

    def deserialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data):
        return self.model.answer(data) if BATCH_SIZE > 1 else self.model.answer([data])[0]


if __name__ == "__main__":
    server = Server()
    batching = {"max_batch_size": BATCH_SIZE, "max_wait_time": int(os.environ["DELAY_MS"])}
    server.append_worker(Inference, num=WORKERS, timeout=120, **(batching if BATCH_SIZE > 1 else {}))
    server.run()
