"""``cloister proxy``: plain HTTP on this machine in, verified and sealed requests out."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from cloister.cli.options import (
    ModelDigests,
    ModelSigners,
    PolicyDigests,
    ReferenceFile,
    SimulatedRoot,
    trusted_roots,
)
from cloister.cli.output import errors, one_line
from cloister.errors import CloisterError, ConfigError


def proxy(
    url: Annotated[str, typer.Argument(help="Base URL of the service.")],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where to take plain HTTP; port 0 picks a free one.")
    ] = "127.0.0.1:8090",
    unix: Annotated[
        Path | None, typer.Option(help="Listen on this UNIX socket instead; only this user can connect.")
    ] = None,
    reference_values: ReferenceFile = None,
    simulated_root: SimulatedRoot = None,
    model_digest: ModelDigests = None,
    model_signer: ModelSigners = None,
    policy_digest: PolicyDigests = None,
    max_age: Annotated[
        float, typer.Option(min=0, help="Seconds for which one verification is relied on.")
    ] = 300.0,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds for each network operation.")] = 60.0,
    host_name: Annotated[
        list[str] | None, typer.Option(help="Another host name under which requests are taken.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="Web origin whose pages may send requests.")
    ] = None,
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Listen beyond loopback: what comes in is NOT protected.")
    ] = False,
) -> None:
    """Take plain HTTP from programs on this machine, and send it sealed to a service that verifies.

    The service is verified before the port opens, and again when that is older than --max-age or its keys
    change. What cannot be verified is answered 502 and nothing is sent.
    """
    import uvicorn

    from cloister.attest.appraisal import ReferenceValues
    from cloister.client.aio import AsyncOhttpTransport
    from cloister.client.channel import verify_service
    from cloister.client.proxy import LOOPBACK_NAMES, ProxyApp
    from cloister.crypto.locked import forbid_dumps
    from cloister.serve.faults import report_crashes_without_content
    from cloister.serve.listen import bind
    from cloister.serve.log import configure_log

    if reference_values is None:
        raise ConfigError("no reference values: nothing says which TEE is acceptable", hint="give -r FILE")
    host, port = _address(listen, allow_remote=allow_remote)
    references = ReferenceValues.from_toml(reference_values).demanding(
        model_digest or (), model_signer or (), policy_digest or ()
    )
    roots = trusted_roots(simulated_root)
    # Once before the port opens, so that a wrong address or policy is known at the start.
    verify_service(url, reference_values=references, roots=roots, timeout_s=timeout)
    # From here on this process is a server: what passes in the clear shall be in no dump, traceback or log.
    configure_log("warning")
    report_crashes_without_content()
    forbid_dumps()
    transport = AsyncOhttpTransport(
        url,
        reference_values=references,
        roots=roots,
        max_age_s=max_age,
        timeout_s=timeout,
        streaming=True,
    )
    app = ProxyApp(
        transport,
        host_names=(*LOOPBACK_NAMES, *(host_name or ())) if not allow_remote else host_name or (),
        origins=allow_origin or (),
        on_refusal=_report,
    )
    listener = _listen_unix(unix) if unix else bind(host, port)
    listener.listen(128)
    where = str(unix) if unix else "http://{}:{}".format(*listener.getsockname()[:2])
    typer.echo(f"Cloister proxy: {where} -> {url}, verified and sealed")
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="on", ws="none"
    )
    # uvicorn raises the signal that ended it once more, for whoever started it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        if unix:
            unix.unlink(missing_ok=True)


def _address(listen: str, *, allow_remote: bool) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"--listen {listen[:80]} is not HOST:PORT")
    host = host.strip("[]")
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not allow_remote:
        raise ConfigError(
            f"{host} is not a loopback address: others could read what they send here",
            hint="listen on 127.0.0.1, or say --allow-remote",
        )
    return host, int(port)


def _listen_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    former = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)
        listener.bind(str(path))
    except OSError as error:
        raise ConfigError(f"cannot listen at {path}: {error.strerror}") from error
    finally:
        os.umask(former)
    return listener


def _report(error: CloisterError) -> None:
    errors.print(f"refused: {one_line(error)}")
