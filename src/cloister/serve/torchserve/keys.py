"""The keys of ``config.properties``: what each one is here. A key that is in neither table gets a warning.

Source: pytorch/serve 0.12, ConfigManager.java and docs/configuration.md.
"""

from __future__ import annotations

from types import MappingProxyType

USED = frozenset(
    (
        "allowed_urls",
        "blacklist_env_vars",
        "certificate_file",
        "cors_allowed_headers",
        "cors_allowed_methods",
        "cors_allowed_origin",
        "debug",
        "decode_input_request",
        "default_response_timeout",
        "default_service_handler",
        "default_startup_timeout",
        "default_workers_per_model",
        "disable_system_metrics",
        "disable_token_authorization",
        "enable_envvars_config",
        "enable_grpc_ssl",
        "enable_metrics_api",
        "enable_model_api",
        "grpc_inference_address",
        "grpc_inference_max_connection_age_ms",
        "grpc_inference_port",
        "grpc_management_address",
        "grpc_management_max_connection_age_ms",
        "grpc_management_port",
        "inference_address",
        "install_py_dep_per_model",
        "job_queue_size",
        "keystore",
        "keystore_pass",
        "keystore_type",
        "load_models",
        "management_address",
        "max_request_size",
        "metrics_address",
        "metrics_config",
        "model_snapshot",
        "model_store",
        "models",
        "private_key_file",
        "service_envelope",
        "token_expiration_min",
        "ts_open_inference_protocol",
        "unregister_model_timeout",
        "use_env_allowed_urls",
    )
)

_JAVA = "it tunes TorchServe's Java frontend, and there is none here"
_HEADER = "the headers of sequences have their standard names"
IGNORED = MappingProxyType(
    {
        "async_logging": _JAVA,
        "io_ratio": _JAVA,
        "netty_client_threads": _JAVA,
        "number_of_netty_threads": _JAVA,
        "prefer_direct_buffer": _JAVA,
        "use_native_io": _JAVA,
        "vmargs": _JAVA,
        "cpp_log_config": "there is no C++ backend",
        "cpu_launcher_args": "workers are pinned by serve.layout",
        "cpu_launcher_enable": "workers are pinned by serve.layout",
        "initial_distribution_port": "workers have no port",
        "initial_worker_port": "workers have no port",
        "ipex_enable": "Intel's extension is a part of PyTorch now",
        "ipex_gpu_enable": "Intel's extension is a part of PyTorch now",
        "max_response_size": "answers have the one limit of the workers' protocol, 256 MiB",
        "metric_time_interval": "values of the machine are read when they are asked for",
        "model_metrics_auto_detect": "every metric of a handler is taken",
        "limit_max_image_pixels": "Pillow's own limit stays in force",
        "metrics_mode": "metrics are always there for Prometheus, and never files",
        "grpc_inference_max_connection_age_grace_ms": "what runs when a connection is closed may finish",
        "grpc_management_max_connection_age_grace_ms": "what runs when a connection is closed may finish",
        "number_of_gpu": "workers use the GPUs that torch sees: set CUDA_VISIBLE_DEVICES",
        "model_server_home": "there is no TorchServe to find",
        "plugins_path": "plug-ins of TorchServe are Java classes",
        "system_metrics_cmd": "values of the machine are read by the server itself",
        "ts_header_key_sequence_end": _HEADER,
        "ts_header_key_sequence_id": _HEADER,
        "ts_header_key_sequence_start": _HEADER,
        "workflow_store": "workflows are not served",
    }
)
"""Known keys that change nothing here, and why."""

KNOWN = USED | IGNORED.keys()

ENVIRONMENT = MappingProxyType(
    {
        **{f"TS_{key.upper()}": key for key in sorted(KNOWN) if not key.startswith("ts_")},
        **{key.upper(): key for key in sorted(KNOWN) if key.startswith("ts_")},
        "TS_TOKEN_EXPIRATION_TIME_MIN": "token_expiration_min",
    }
)
"""The variable of each key, read only with ``enable_envvars_config=true``."""

NOT_FROM_ENVIRONMENT = frozenset(
    ("enable_envvars_config", "use_env_allowed_urls", "models", "model_snapshot")
)
