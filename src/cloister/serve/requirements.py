"""The Python packages that a model's ``requirements.txt`` names: are they there; if told so, install them.

Installing runs code from elsewhere on this machine. A protected server never does it: what it runs is
measured, and what it may load is signed. An open one does it only when told (TorchServe's
install_py_dep_per_model).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from cloister.errors import ConfigError, MalformedInput, ModelFailed
from cloister.serve.log import log
from cloister.serve.manifest import PACKAGES_FOLDER

MAX_REQUIREMENTS_BYTES = 1 << 18
INSTALL_TIMEOUT_S = 600.0
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE")


def missing_packages(text: str) -> list[str]:
    """The requirements that this Python does not meet, as they are written.

    A line that is not a plain requirement (an option, a path, a URL) cannot be judged and counts as missing.
    """
    missing = []
    for line in _lines(text):
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            missing.append(line)
            continue
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(line)
            continue
        if requirement.url or not requirement.specifier.contains(version, prereleases=True):
            missing.append(line)
    return missing


def read_requirements(folder: Path, name: str) -> str:
    """The text of a model's requirements.

    Raises:
        MalformedInput: the file is not there, too long, or not text.
    """
    try:
        with (folder / name).open("rb") as file:
            raw = file.read(MAX_REQUIREMENTS_BYTES + 1)
        if len(raw) > MAX_REQUIREMENTS_BYTES:
            raise MalformedInput(f"the archive's requirements are over {MAX_REQUIREMENTS_BYTES} bytes")
        return raw.decode()
    except (OSError, UnicodeDecodeError) as error:
        raise MalformedInput("the archive's requirements cannot be read") from error


def require_packages(folder: Path, name: str, *, model: str) -> None:
    """Refuse a model whose packages are not all there; for servers that install nothing.

    Raises:
        ConfigError: the message names what is missing.
    """
    missing = missing_packages(read_requirements(folder, name))
    if missing:
        listed = ", ".join(line[:80] for line in missing[:20])
        raise ConfigError(
            f"model {model} needs Python packages that are not installed: {listed}",
            hint="a protected server installs nothing when it loads a model: put them into its image",
        )


def warn_of_missing(folder: Path, name: str, *, model: str) -> None:
    """Say in the log what a model needs and does not find; it is loaded all the same, as TorchServe does."""
    missing = missing_packages(read_requirements(folder, name))
    if missing:
        log.warning("packages of a model are not installed", model=model, missing=missing[:20])


def install_requirements(folder: Path, name: str, *, model: str) -> None:
    """Install a model's packages into a folder of its own inside ``folder``.

    Raises:
        ModelFailed: the installer could not.
    """
    read_requirements(folder, name)
    with tempfile.TemporaryDirectory(prefix="cloister-pip-") as home:
        environment = {key: os.environ[key] for key in _PASSED_ON if key in os.environ}
        environment |= {
            k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.lower().endswith("_proxy")
        }
        environment |= {"HOME": home, "TMPDIR": home}
        command = [sys.executable, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        command += ["--no-warn-script-location", "--target", str(folder / PACKAGES_FOLDER), "-r", name]
        try:
            result = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=INSTALL_TIMEOUT_S,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ModelFailed(f"Custom pip package installation failed for model {model}") from error
    if result.returncode:
        last = result.stderr.decode(errors="replace").strip().splitlines()[-1:]
        log.warning("packages of a model could not be installed", model=model, installer=last)
        raise ModelFailed(f"Custom pip package installation failed for model {model}")
    log.info("packages of a model installed", model=model)


def _lines(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    stripped = (line.partition(" #")[0].strip() for line in joined.splitlines())
    return [line for line in stripped if line and not line.startswith("#")]
