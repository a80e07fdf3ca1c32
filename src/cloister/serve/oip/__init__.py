"""Open Inference Protocol v2: tensors in JSON and binary, requests, answers. No I/O; runs inside workers."""
