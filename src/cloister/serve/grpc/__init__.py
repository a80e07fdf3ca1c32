"""gRPC: TorchServe's inference and management services, Open Inference Protocol v2, health checks."""
