"""From TorchServe's three sources of configuration to Cloister's settings.

1. The file: ``TS_CONFIG_FILE`` of the environment, else ``--ts-config``, else ``config.properties`` in the
   working folder, else none. ``$$NAME$$`` in a value is that variable of the environment.
2. The command line wins over the file.
3. ``TS_<KEY>`` of the environment wins over both, if the file says ``enable_envvars_config=true``.
   ``TS_ALLOWED_URLS`` needs ``use_env_allowed_urls=true`` besides.

What differs on purpose: ``allowed_urls`` allows nothing by default (ShellTorch), and a value that cannot be
used ends the start with one line.

Source: pytorch/serve 0.12, ConfigManager.java.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cloister.errors import ConfigError, MalformedInput
from cloister.serve.address import parse_address
from cloister.serve.torchserve.arguments import Arguments
from cloister.serve.torchserve.keys import ENVIRONMENT, IGNORED, KNOWN, NOT_FROM_ENVIRONMENT
from cloister.serve.torchserve.properties import parse_properties
from cloister.serve.torchserve.snapshot import read_snapshot

FILE_NAME = "config.properties"
DEFAULT_ADDRESSES = {
    "inference_address": "http://127.0.0.1:8080",
    "management_address": "http://127.0.0.1:8081",
    "metrics_address": "http://127.0.0.1:8082",
}
MAX_INT = (1 << 31) - 1
_KEYSTORE_PASSWORD = "TS_KEYSTORE_PASS"  # noqa: S105 (a variable's name)
_REFERENCE = re.compile(r"\$\$([^$]+[^$])\$\$")


@dataclass(frozen=True, slots=True)
class Configuration:
    """Effective keys, where they came from, and what there is to say about them."""

    values: Mapping[str, str]
    file: Path | None
    warnings: tuple[str, ...]


def resolve(arguments: Arguments, environ: Mapping[str, str], folder: Path) -> Configuration:
    """The effective keys of a start in ``folder``.

    Raises:
        ConfigError: a file that cannot be read, or a reference to a variable that is not set.
    """
    file = _find_file(arguments, environ, folder)
    values = _read_file(file) if file is not None else {}
    values = {key: _substitute(key, value, environ) for key, value in values.items()}
    for key, value in _from_arguments(arguments).items():
        values[key] = value
    if _is_true(values.get("enable_envvars_config", "")):
        from_environment = _is_true(values.get("use_env_allowed_urls", ""))
        for variable, key in ENVIRONMENT.items():
            allowed = key not in NOT_FROM_ENVIRONMENT and (key != "allowed_urls" or from_environment)
            if allowed and variable in environ:
                values[key] = environ[variable]
    if environ.get("TS_OPEN_INFERENCE_PROTOCOL"):  # read by TorchServe in any case, with a word of its own
        values["ts_open_inference_protocol"] = str(environ["TS_OPEN_INFERENCE_PROTOCOL"] == "oip").lower()
    return Configuration(values, file, _warn(values, arguments))


def serve_settings(configuration: Configuration) -> dict[str, Any]:
    """Overrides of ``[serve]`` as ``load_settings`` takes them.

    Raises:
        ConfigError: a value that cannot be used.
    """
    keys = _Keys(configuration.values)
    flags: dict[str, Any] = {
        "mode": "open",
        "model_store": keys.text("model_store"),
        "load_models": [part.strip() for part in keys.text("load_models").split(",") if part.strip()],
        "model_configs": _check_models(keys.text("models")),
        "max_request_bytes": keys.number("max_request_size", 6_553_500, high=MAX_INT),
        "request_timeout_s": float(keys.number("default_response_timeout", 120, low=1)),
        "startup_timeout_s": float(keys.number("default_startup_timeout", 120, low=1)),
        "unregister_timeout_s": float(keys.number("unregister_model_timeout", 120, low=0)),
        "max_queue": keys.number("job_queue_size", 100, low=1),
        "default_workers": keys.number("default_workers_per_model", 0, high=1024),
        "startup_workers": keys.number("default_workers_per_model", 0, high=1024) or os.cpu_count() or 1,
        "token_auth": not keys.flag("disable_token_authorization"),
        "token_expiration_min": keys.real("token_expiration_min", 60.0),
        "model_api": keys.flag("enable_model_api"),
        "allowed_urls": [part.strip() for part in keys.text("allowed_urls").split(",") if part.strip()],
        "install_requirements": keys.flag("install_py_dep_per_model"),
        "service_envelope": keys.text("service_envelope"),
        "metrics_config": keys.text("metrics_config"),
        "default_handler": keys.text("default_service_handler"),
        "cors_origin": keys.text("cors_allowed_origin"),
        "cors_methods": keys.text("cors_allowed_methods"),
        "cors_headers": keys.text("cors_allowed_headers"),
        "system_metrics": not keys.flag("disable_system_metrics"),
        "decode_requests": keys.flag("decode_input_request", default=True),
        "skip_broken_models": True,
        "worker_environment": _passed_on(keys.text("blacklist_env_vars")),
    }
    for name, default in DEFAULT_ADDRESSES.items():
        flags[name] = keys.text(name) or default
        parse_address(flags[name], name)
    if not keys.flag("enable_metrics_api", default=True):
        flags["metrics_address"] = ""
    if keys.flag("debug"):
        flags["log_level"] = "debug"
        flags["startup_workers"] = 1
    if keys.text("model_snapshot"):
        flags.update(_restored(keys))
    flags.update(_tls(keys, flags))
    flags.update(_grpc(keys))
    return {f"serve.{name}": value for name, value in flags.items()}


class _Keys:
    """Values with their types; every complaint names the key."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def text(self, key: str) -> str:
        return self._values.get(key, "").strip()

    def flag(self, key: str, *, default: bool = False) -> bool:
        return _is_true(self._values[key]) if key in self._values else default

    def number(self, key: str, default: int, *, low: int = 0, high: int = MAX_INT) -> int:
        text = self.text(key)
        if not text:
            return default
        if not re.fullmatch(r"[+-]?[0-9]{1,19}", text) or not low <= int(text) <= high:
            raise ConfigError(f"{key}={text[:40]} is not a whole number from {low} to {high}")
        return int(text)

    def real(self, key: str, default: float) -> float:
        text = self.text(key)
        try:
            value = float(text) if text else default
        except ValueError as error:
            raise ConfigError(f"{key}={text[:40]} is not a number") from error
        if not 0 < value < 1e9:
            raise ConfigError(f"{key}={text[:40]} is not a number above 0")
        return value


def _find_file(arguments: Arguments, environ: Mapping[str, str], folder: Path) -> Path | None:
    named = environ.get("TS_CONFIG_FILE") or arguments.ts_config
    if named:
        path = folder / Path(named)
        if not path.is_file():
            raise ConfigError(f"--ts-config file not found: {named}")
        return path
    default = folder / FILE_NAME
    return default if default.is_file() else None


def _read_file(file: Path) -> dict[str, str]:
    try:
        return parse_properties(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from error
    except MalformedInput as error:
        raise ConfigError(f"{file}: {error.message}") from error


def _substitute(key: str, value: str, environ: Mapping[str, str]) -> str:
    def look_up(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise ConfigError(f"{key}: Invalid Environment Variable {match[1]}")
        return environ[match[1]]

    return _REFERENCE.sub(look_up, value)


def _from_arguments(arguments: Arguments) -> dict[str, str]:
    found: dict[str, str] = {}
    if arguments.model_store is not None:
        found["model_store"] = str(arguments.model_store)
    if arguments.workflow_store is not None:
        found["workflow_store"] = str(arguments.workflow_store)
    if arguments.models:
        found["load_models"] = ",".join(arguments.models)
    if arguments.disable_token_auth:
        found["disable_token_authorization"] = "true"  # noqa: S105 (a switch)
    if arguments.enable_model_api:
        found["enable_model_api"] = "true"
    return found


def _warn(values: Mapping[str, str], arguments: Arguments) -> tuple[str, ...]:
    warnings = [f"{key} has no effect: {IGNORED[key]}" for key in values if key in IGNORED]
    warnings += [f"unknown key {key[:60]!r} in the configuration" for key in values if key not in KNOWN]
    if arguments.log_config is not None:
        warnings.append("--log-config has no effect: the log is JSON on standard error")
    if arguments.cpp_log_config is not None:
        warnings.append("--cpp-log-config has no effect: there is no C++ backend")
    if arguments.plugins_path:
        warnings.append(f"--plugins-path has no effect: {IGNORED['plugins_path']}")
    if _is_true(values.get("disable_token_authorization", "")):
        warnings.append("token authorization is off: whoever reaches a port may use it")
    return tuple(warnings)


def _check_models(text: str) -> str:
    if not text:
        return ""
    try:
        document = msgspec.json.decode(text, type=dict[str, dict[str, dict[str, Any]]])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ConfigError(f"models: {str(error)[:120]}", hint='{"name": {"version": {...}}}') from error
    return msgspec.json.encode(document).decode()


def _restored(keys: _Keys) -> dict[str, Any]:
    """A snapshot goes before ``load_models``, and what it says of a model before ``models``."""
    snapshot = read_snapshot(keys.text("model_snapshot"))
    configured = msgspec.json.decode(_check_models(keys.text("models")) or "{}")
    for name, versions in snapshot.models.items():
        configured[name] = {**configured.get(name, {}), **versions}
    return {"load_models": snapshot.load_models, "model_configs": msgspec.json.encode(configured).decode()}


def _passed_on(withheld: str) -> str:
    """TorchServe's workers have the whole environment but for this."""
    try:
        re.compile(withheld)
    except re.error as error:
        raise ConfigError(f"blacklist_env_vars={withheld[:40]} is no regular expression: {error}") from error
    without = "|".join(filter(None, (withheld, _KEYSTORE_PASSWORD)))
    return f"(?!(?:{without})$).*"


def _tls(keys: _Keys, flags: Mapping[str, Any]) -> dict[str, str]:
    found = {
        "certificate": keys.text("certificate_file"),
        "private_key": keys.text("private_key_file"),
        "keystore": keys.text("keystore"),
        "keystore_password": keys.text("keystore_pass") or "changeit",
    }
    kind = keys.text("keystore_type") or "PKCS12"
    if found["keystore"] and kind.upper() != "PKCS12":
        raise ConfigError(
            f"keystore_type={kind[:20]}: only PKCS12 can be read", hint="keytool converts others"
        )
    if not found["keystore"]:
        found["keystore_password"] = ""
    secure = any(str(flags.get(name, "")).lower().startswith("https:") for name in DEFAULT_ADDRESSES)
    if secure and not found["keystore"] and not (found["certificate"] and found["private_key"]):
        raise ConfigError(
            "an address is https, and there is no certificate",
            hint="set certificate_file and private_key_file, or keystore",
        )
    return found


def _grpc(keys: _Keys) -> dict[str, Any]:
    ages = [
        keys.number(f"grpc_{which}_max_connection_age_ms", 0, high=1 << 62)
        for which in ("inference", "management")
    ]
    return {
        "grpc_port": keys.number("grpc_inference_port", 7070, high=65_535),
        "grpc_host": keys.text("grpc_inference_address") or "127.0.0.1",
        "grpc_management_port": keys.number("grpc_management_port", 7071, high=65_535),
        "grpc_management_host": keys.text("grpc_management_address") or "127.0.0.1",
        "grpc_tls": keys.flag("enable_grpc_ssl"),
        "grpc_connection_age_s": min((age / 1000 for age in ages if age), default=0.0),
    }


def _is_true(text: str) -> bool:
    """Java's Boolean.parseBoolean."""
    return text.strip().lower() == "true"


def log_folder(environ: Mapping[str, str], folder: Path) -> Path:
    """Where a server in the background writes: ``LOG_LOCATION``, else ``logs`` in the working folder."""
    return folder / (environ.get("LOG_LOCATION") or "logs")
