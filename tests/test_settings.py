"""Settings: four layers, one frozen result, no silent mistakes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ConfigError
from cloister.settings import Settings, load_settings, measured_settings, settings_digest


def write(folder: Path, text: str) -> Path:
    file = folder / "cloister.toml"
    file.write_text(text)
    return file


def test_flag_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    """Each layer overrides the one below it, setting by setting."""
    file = write(tmp_path, "[serve]\nhost = 'file'\nhttps_port = 1\nhttp_port = 2\nmax_queue = 3\n")
    environ = {"CLOISTER_SERVE_HOST": "environment", "CLOISTER_SERVE_HTTPS_PORT": "11"}
    settings = load_settings(file, environ, {"serve.host": "flag", "serve.http_port": None})
    serve = settings.serve
    assert (serve.host, serve.https_port, serve.http_port, serve.max_queue) == ("flag", 11, 2, 3)
    assert serve.mode == "protected"


@pytest.mark.parametrize(
    ("file", "environ", "flags"),
    [
        ("[serve]\nhtps_port = 1\n", {}, {}),
        ("[serv]\nhost = 'x'\n", {}, {}),
        ("serve = 1\n", {}, {}),
        ("not toml", {}, {}),
        ("", {"CLOISTER_SERVE_HTPS_PORT": "1"}, {}),
        ("", {"CLOISTER_SERVE_HTTPS_PORT": "many"}, {}),
        ("", {}, {"serve.modus": "open"}),
        ("", {}, {"serve.mode": "half"}),
    ],
)
def test_mistakes_are_errors(
    tmp_path: Path, file: str, environ: dict[str, str], flags: dict[str, str]
) -> None:
    """An unknown name or a wrong type is refused in each layer."""
    with pytest.raises(ConfigError):
        load_settings(write(tmp_path, file), environ, flags)


def test_a_typing_mistake_is_explained() -> None:
    """The error for an unknown name proposes the known one."""
    with pytest.raises(ConfigError) as caught:
        load_settings(flags={"serve.max_quue": 1})
    assert "max_queue" in caught.value.hint


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    """A settings file that was asked for must exist."""
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(tmp_path / "absent.toml")


def test_lists_in_the_environment_are_comma_separated() -> None:
    """A list setting takes several values from one variable."""
    settings = load_settings(environ={"CLOISTER_SERVE_MODELS": "a,b=1.0"})
    assert settings.serve.models == ("a", "b=1.0")


@given(st.integers(min_value=1, max_value=10_000))
def test_any_change_of_a_served_setting_changes_the_digest(max_queue: int) -> None:
    """What a server is told is what it proves: 48 bytes that follow every setting of [serve]."""
    default = Settings()
    changed = load_settings(flags={"serve.max_queue": max_queue})
    assert (settings_digest(changed) == settings_digest(default)) == (max_queue == default.serve.max_queue)
    assert len(settings_digest(changed)) == 48


def test_the_broker_is_not_part_of_a_servers_measurement() -> None:
    """Settings of the broker's own process do not change what a server proves."""
    assert measured_settings(load_settings(flags={"keys.port": 1})) == measured_settings(Settings())


NUMBERS = [
    (section.name, field.name, field.type)
    for section in msgspec.structs.fields(Settings)
    for field in msgspec.structs.fields(section.type)
    if field.type in (int, float)
]


@pytest.mark.parametrize(("section", "name", "kind"), NUMBERS)
def test_numbers_are_usable(tmp_path: Path, section: str, name: str, kind: type) -> None:
    """No setting takes a negative number, one that is none, or one that no digest can be made of."""
    wrong = ["-2", "9007199254740993"] + (["nan", "inf", "-0.5"] if kind is float else [])
    for text in wrong:
        with pytest.raises(ConfigError, match=f"{section}.{name}"):
            load_settings(write(tmp_path, f"[{section}]\n{name} = {text}\n"))


def test_ports_are_ports() -> None:
    """A port has 16 bits."""
    with pytest.raises(ConfigError, match="https_port"):
        load_settings(flags={"serve.https_port": 65_536})
    assert load_settings(flags={"serve.https_port": 65_535}).serve.https_port == 65_535
