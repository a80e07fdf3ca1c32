"""The folders, ports, settings files and documents of one demo."""

from __future__ import annotations

import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cloister.attest.measure import installed_package, measure_package
from cloister.cli.simulate import reference_values
from cloister.cli.walkthrough.processes import free_ports
from cloister.errors import ConfigError
from cloister.serve.sandbox.probe import probe
from cloister.settings import load_settings, settings_digest

SENTINEL = ".cloister-demo"
PIDS = "pids"
TMPFS = Path("/dev/shm")  # noqa: S108  (an owner-only folder is made inside it)

BROKER_POLICY = """\
// Which TEE may have which key. Cedar: nothing is permitted that no policy permits; forbid wins.
// Attestation comes first: only a TEE whose evidence verified and met the reference values gets here.

@id("demo-digits")
permit (
  principal,
  action == Action::"release",
  resource
) when {
  resource.repository == "demo" &&
  context.tcb_status == "UpToDate"
};

@id("never-debug")
forbid (principal, action, resource) when { context.debug };
"""

ACCESS_POLICY = """\
// Who may call which model. Cedar: nothing is permitted that no policy permits; forbid wins.
// Try it: cloister access test requests.cedar --model digits --way tls

@id("anybody-may-ask-digits-sealed")
permit (
  principal,
  action == Action::"predict",
  resource == Model::"digits"
) when {
  context.way == "sealed"   // inside OHTTP, by a caller who has verified this server
};

@id("anybody-may-watch")
permit (principal, action == Action::"metrics", resource);
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything of one demo is."""

    folder: Path
    """On disk: what a host sees. Searched for canaries at the end."""
    plaintext: Path
    """On tmpfs: what the owner and the caller keep to themselves. Removed at the end."""
    broker_port: int
    https_port: int
    spare_ports: tuple[int, int]
    mr_td: str

    @classmethod
    def create(cls, folder: Path) -> Stage:
        """Make the folders; an earlier demo in ``folder`` is replaced, anything else is left alone."""
        if folder.exists() and any(folder.iterdir()):
            if not (folder / SENTINEL).exists():
                raise ConfigError(
                    f"{folder} is not empty and not an earlier demo's", hint="choose another --folder"
                )
            if pids := _still_running(folder):
                raise ConfigError(f"the demo in {folder} is still running", hint=f"kill {pids}")
            shutil.rmtree(folder)
        (folder / "logs").mkdir(parents=True)
        (folder / SENTINEL).write_text("made by `cloister demo`; replaced by the next one\n")
        plaintext = tempfile.mkdtemp(prefix="cloister-demo-", dir=TMPFS if TMPFS.is_dir() else None)
        broker, https, spare, other = free_ports(4)
        mr_td = measure_package(installed_package()).hex()
        return cls(folder.resolve(), Path(plaintext), broker, https, (spare, other), mr_td)

    @property
    def broker_url(self) -> str:
        """Base URL of the key broker."""
        return f"https://127.0.0.1:{self.broker_port}"

    @property
    def url(self) -> str:
        """Base URL of the model server."""
        return f"https://127.0.0.1:{self.https_port}"

    def path(self, name: str) -> Path:
        """A file or folder of the demo."""
        return self.folder / name

    def log(self, name: str) -> Path:
        """The log file of one process."""
        return self.folder / "logs" / f"{name}.log"

    def write_settings(self) -> None:
        """Write the settings files, and from them the reference values of the owner and of the caller."""
        self._write_server("server.toml", "store", self.https_port)
        self._write_server("server-flipped.toml", "store-flipped", self.spare_ports[0])
        self._write_server("server-changed-code.toml", "store", self.spare_ports[1])
        self.path("broker.toml").write_text(
            "[keys]\n"
            f'folder = "{self.path("keys")}"\n'
            f"port = {self.broker_port}\n"
            f'reference_values = "{self.path("owner-reference.toml")}"\n'
            f'policy = "{self.path("release.cedar")}"\n'
            f'collateral = "{self.path("platform") / "collateral.json"}"\n'
            f'simulated_root = "{self.path("platform") / "root.pem"}"\n'
        )
        self.path("release.cedar").write_text(BROKER_POLICY)
        self.path("requests.cedar").write_text(ACCESS_POLICY)
        digests = [
            self.config_digest(name)
            for name in ("server.toml", "server-flipped.toml", "server-changed-code.toml")
        ]
        self.path("owner-reference.toml").write_text(reference_values([self.mr_td], digests))
        self.path("caller-reference.toml").write_text(reference_values([self.mr_td], digests[:1]))
        other = ("0" if self.mr_td[0] != "0" else "1") + self.mr_td[1:]
        self.path("other-reference.toml").write_text(reference_values([other], digests[:1]))

    def config_digest(self, name: str) -> str:
        """The ``mr_config_id`` of a server that is started with this settings file."""
        return settings_digest(load_settings(self.path(name))).hex()

    def remove_plaintext(self) -> None:
        """Remove what the owner and the caller kept in memory."""
        shutil.rmtree(self.plaintext, ignore_errors=True)

    def _write_server(self, name: str, store: str, port: int) -> None:
        self.path(name).write_text(
            "[serve]\n"
            f'model_store = "{self.path(store)}"\n'
            f"https_port = {port}\n"
            f'broker = "{self.broker_url}"\n'
            f'broker_ca = "{self.path("keys") / "tls.pem"}"\n'
            f'trusted_signers = "{self.path("signers.txt")}"\n'
            f'access_policy = "{self.path("requests.cedar")}"\n'
            f"{_sandbox_setting()}\n"
            "[attest]\n"
            'attester = "simulated-tdx"\n'
            f'simulated_platform = "{self.path("platform")}"\n'
        )


@functools.cache
def _sandbox_setting() -> str:
    """A line for a machine that cannot confine a worker, where a protected server has to be told so."""
    missing = probe().missing()
    return 'sandbox = "best-effort"\n' if missing else ""


def _still_running(folder: Path) -> str:
    """What an earlier demo left running, as `--keep` does; processes of other programs are none of it."""
    try:
        pids = (folder / PIDS).read_text().split()
    except OSError:
        return ""
    return " ".join(pid for pid in pids if pid.isdigit() and _runs_in(folder, pid))


def _runs_in(folder: Path, pid: str) -> bool:
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"cloister" in line and f"{folder.resolve()}/".encode() in line
