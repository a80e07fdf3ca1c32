"""From config.properties, command line and environment to settings."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import ConfigError
from cloister.serve.torchserve.arguments import Arguments, parse_arguments
from cloister.serve.torchserve.config import log_folder, resolve, serve_settings
from cloister.serve.torchserve.keys import ENVIRONMENT, IGNORED, KNOWN, USED
from cloister.settings import load_settings


def settings_of(
    folder: Path, text: str = "", line: str = "", environ: dict[str, str] | None = None
) -> dict[str, Any]:
    (folder / "config.properties").write_text(text)
    return serve_settings(resolve(parse_arguments(line.split()), environ or {}, folder))


def test_defaults(tmp_path: Path) -> None:
    """Without a file it listens where TorchServe does, asks for tokens, and lets nobody add models."""
    flags = serve_settings(resolve(Arguments(model_store=Path("s")), {}, tmp_path))
    settings = load_settings(None, {}, flags).serve
    assert settings.mode == "open"
    assert settings.inference_address == "http://127.0.0.1:8080"
    assert settings.management_address == "http://127.0.0.1:8081"
    assert settings.metrics_address == "http://127.0.0.1:8082"
    assert (settings.grpc_port, settings.grpc_management_port) == (7070, 7071)
    assert (settings.token_auth, settings.model_api, settings.allowed_urls) == (True, False, ())
    assert (settings.default_workers, settings.startup_workers) == (0, os.cpu_count())


def test_environment_of_workers(tmp_path: Path) -> None:
    """Workers get all of the environment but for what is withheld, which has to be an expression."""

    def passes(pattern: str, name: str) -> bool:
        return re.fullmatch(pattern, name) is not None

    plain = settings_of(tmp_path)["serve.worker_environment"]
    assert passes(plain, "HOME")
    assert passes(plain, "TS_KEYSTORE_PASSWORD")
    assert not passes(plain, "TS_KEYSTORE_PASS")
    some = settings_of(tmp_path, "blacklist_env_vars=AWS_.*|SECRET")["serve.worker_environment"]
    assert passes(some, "SECRETS")
    assert not any(passes(some, name) for name in ("AWS_X", "SECRET", "TS_KEYSTORE_PASS"))
    with pytest.raises(ConfigError, match="blacklist_env_vars"):
        settings_of(tmp_path, "blacklist_env_vars=(")


def test_every_setting_has_its_place(tmp_path: Path) -> None:
    """Keys become the settings that they stand for, and all of them are settings that there are."""
    text = """
inference_address=https://0.0.0.0:8443
management_address=unix:/tmp/m.sock
enable_metrics_api=false
certificate_file=c.pem
private_key_file=k.pem
load_models=a.mar, b=c.mar
default_workers_per_model=3
job_queue_size=7
max_request_size=10
default_response_timeout=12
default_startup_timeout=13
unregister_model_timeout=14
token_expiration_min=0.5
allowed_urls=https://a/.*,https://b/.*
cors_allowed_origin=https://you
cors_allowed_methods=GET
cors_allowed_headers=X-A
disable_system_metrics=true
grpc_inference_port=1
grpc_management_max_connection_age_ms=2000
models={"a": {"1.0": {"batchSize": 2}}}
"""
    settings = load_settings(None, {}, settings_of(tmp_path, text, "--model-store s")).serve
    assert settings.inference_address == "https://0.0.0.0:8443"
    assert settings.management_address == "unix:/tmp/m.sock"
    assert settings.metrics_address == ""
    assert (settings.certificate, settings.private_key) == ("c.pem", "k.pem")
    assert settings.load_models == ("a.mar", "b=c.mar")
    assert (settings.default_workers, settings.startup_workers, settings.max_queue) == (3, 3, 7)
    assert settings.max_request_bytes == 10
    assert (settings.request_timeout_s, settings.startup_timeout_s) == (12.0, 13.0)
    assert (settings.unregister_timeout_s, settings.token_expiration_min) == (14.0, 0.5)
    assert settings.allowed_urls == ("https://a/.*", "https://b/.*")
    assert (settings.cors_origin, settings.cors_methods, settings.cors_headers) == (
        "https://you",
        "GET",
        "X-A",
    )
    assert (settings.system_metrics, settings.grpc_port, settings.grpc_connection_age_s) == (False, 1, 2.0)
    assert settings.model_configs == '{"a":{"1.0":{"batchSize":2}}}'


def test_precedence(tmp_path: Path) -> None:
    """Environment over command line over file; the environment only where the file allows it."""
    text = "enable_model_api=false\nmodel_store=from-file\nload_models=file.mar\njob_queue_size=1\n"
    environ = {"TS_JOB_QUEUE_SIZE": "2", "TS_MODEL_STORE": "from-environment", "TS_LOAD_MODELS": "env.mar"}
    line = "--model-store from-line --models line.mar --enable-model-api"
    flags = settings_of(tmp_path, text, line, environ)
    assert flags["serve.model_store"] == "from-line"
    assert flags["serve.load_models"] == ["line.mar"]
    assert (flags["serve.max_queue"], flags["serve.model_api"]) == (1, True)
    flags = settings_of(tmp_path, text + "enable_envvars_config=true\n", line, environ)
    assert flags["serve.model_store"] == "from-environment"
    assert flags["serve.load_models"] == ["env.mar"]
    assert flags["serve.max_queue"] == 2


def test_allowed_urls_need_a_word_of_their_own(tmp_path: Path) -> None:
    """TS_ALLOWED_URLS counts only with use_env_allowed_urls."""
    environ = {"TS_ALLOWED_URLS": ".*"}
    text = "enable_envvars_config=true\n"
    assert settings_of(tmp_path, text, "", environ)["serve.allowed_urls"] == []
    text += "use_env_allowed_urls=true\n"
    assert settings_of(tmp_path, text, "", environ)["serve.allowed_urls"] == [".*"]


def test_which_file(tmp_path: Path) -> None:
    """TS_CONFIG_FILE wins over --ts-config, that over config.properties of the working folder."""
    for name in ("config", "flag", "env"):
        (tmp_path / f"{name}.properties").write_text(f"model_store={name}\n")
    line = parse_arguments(["--ts-config", "flag.properties"])
    assert resolve(Arguments(), {}, tmp_path).values["model_store"] == "config"
    assert resolve(line, {}, tmp_path).values["model_store"] == "flag"
    environ = {"TS_CONFIG_FILE": "env.properties"}
    assert resolve(line, environ, tmp_path).values["model_store"] == "env"
    with pytest.raises(ConfigError, match="file not found"):
        resolve(parse_arguments(["--ts-config", "absent"]), {}, tmp_path)


def test_references_to_the_environment(tmp_path: Path) -> None:
    """$$NAME$$ is a variable of the environment; one that is not set ends the start."""
    assert (
        settings_of(tmp_path, "model_store=/a/$$WHERE$$/b", "", {"WHERE": "x"})["serve.model_store"]
        == "/a/x/b"
    )
    with pytest.raises(ConfigError, match="Invalid Environment Variable WHERE"):
        settings_of(tmp_path, "model_store=$$WHERE$$")


@pytest.mark.parametrize(
    "text",
    [
        "inference_address=8080",
        "inference_address=ftp://127.0.0.1:1",
        "management_address=http://127.0.0.1:99999",
        "inference_address=https://127.0.0.1:8443",
        "job_queue_size=many",
        "max_request_size=-1",
        "default_response_timeout=0",
        "token_expiration_min=x",
        "token_expiration_min=-1",
        "models={",
        'models={"a": 1}',
        "keystore=a.jks\nkeystore_type=JKS",
        "model_store=\\u12",
    ],
)
def test_values_that_cannot_be(tmp_path: Path, text: str) -> None:
    """A value that cannot be used is a configuration error of one line."""
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, text)
    assert "\n" not in caught.value.message


def test_warnings(tmp_path: Path) -> None:
    """Known keys without effect say why, unknown ones that they are unknown; no token is a warning too."""
    text = "number_of_netty_threads=4\nno_such_key=1\ndisable_token_authorization=true\njob_queue_size=5\n"
    (tmp_path / "config.properties").write_text(text)
    warnings = resolve(parse_arguments(["--log-config", "x"]), {}, tmp_path).warnings
    assert len(warnings) == 4
    assert warnings[0].startswith("number_of_netty_threads has no effect: ")
    assert "no_such_key" in warnings[1]
    assert "--log-config" in warnings[2]
    assert "token authorization is off" in warnings[3]


def test_tables_of_keys() -> None:
    """No key is both used and ignored, and each has its variable."""
    assert USED.isdisjoint(IGNORED)
    assert set(ENVIRONMENT.values()) == KNOWN
    assert ENVIRONMENT["TS_ENABLE_MODEL_API"] == "enable_model_api"
    assert ENVIRONMENT["TS_TOKEN_EXPIRATION_TIME_MIN"] == "token_expiration_min"


def test_where_logs_go(tmp_path: Path) -> None:
    """LOG_LOCATION, else the folder ``logs``."""
    assert log_folder({}, tmp_path) == tmp_path / "logs"
    assert log_folder({"LOG_LOCATION": "/var/x"}, tmp_path) == Path("/var/x")
