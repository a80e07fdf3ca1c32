"""From settings to access control: which files, which issuer, which key signs the log of decisions."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cloister.errors import CloisterError, ConfigError
from cloister.kbs.owner_files import load_or_make_ed25519
from cloister.policy.requests import FixedPolicy, WatchedPolicy
from cloister.serve.access.audit import DecisionLog
from cloister.serve.access.control import REFRESH_S, AccessControl
from cloister.serve.access.decision_file import rotated_parts
from cloister.serve.access.issuers import Issuer
from cloister.serve.access.limits import CallerLimits
from cloister.serve.client_tls import read_client_ca
from cloister.serve.log import log
from cloister.settings import ServeSettings

NOBODY = "nobody may ask: set serve.access_policy to a Cedar file that permits it"
"""What a protected server without a policy says of itself."""
_EVERYBODY = "permit (principal, action, resource);"


async def start_access_control(serve: ServeSettings, stack: AsyncExitStack) -> AccessControl:
    """Read every file, ask the issuer for its keys, and keep looking for changes until ``stack`` closes.

    Raises:
        ConfigError: a file cannot be used, or settings that do not go together.
        AuditBroken, BadSignature: the log of decisions is not the one that its key signed.
    """
    policy = _make_policy(serve)
    decisions = _open_log(serve)
    if decisions is not None:
        stack.callback(decisions.close)
    control = AccessControl(
        policy,
        api_keys=Path(serve.api_keys) if serve.api_keys else None,
        issuers=_make_issuers(serve),
        identities=Path(serve.identities) if serve.identities else None,
        client_ca=read_client_ca(serve),
        limits=CallerLimits(serve.rate_per_s, serve.quota_per_day),
        log=decisions,
        on_problem=_report_callers,
    )
    await asyncio.to_thread(control.refresh)
    task = asyncio.create_task(_keep_fresh(control))
    stack.push_async_callback(_end, task)
    return control


async def _keep_fresh(control: AccessControl) -> None:
    while True:
        await asyncio.sleep(REFRESH_S)
        try:
            await asyncio.to_thread(control.refresh)
        except Exception as error:  # noqa: BLE001 (what is known goes on being good; the next turn tries again)
            log.error("access control not refreshed", exception=type(error).__name__)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _make_policy(serve: ServeSettings) -> WatchedPolicy | FixedPolicy:
    if serve.access_policy:
        return WatchedPolicy(Path(serve.access_policy), on_problem=_report)
    if serve.mode == "protected":
        log.warning(NOBODY)
        return FixedPolicy()
    named = ("api_keys", "jwt_issuer", "identities", "client_ca")
    for name in (name for name in named if getattr(serve, name)):
        raise ConfigError(f"serve.{name} without serve.access_policy: nobody would be asked")
    return FixedPolicy(_EVERYBODY)


def _report(problem: ConfigError) -> None:
    log.error("access policy not taken over: the former one decides", reason=problem.message)


def _report_callers(problem: CloisterError) -> None:
    log.error("callers are known as before", reason=problem.message)


def _make_issuers(serve: ServeSettings) -> list[Issuer]:
    if not serve.jwt_issuer:
        if serve.jwt_audience or serve.jwt_jwks_url:
            raise ConfigError("serve.jwt_audience and serve.jwt_jwks_url need serve.jwt_issuer")
        return []
    if not serve.jwt_audience:
        raise ConfigError("serve.jwt_issuer without serve.jwt_audience: tokens for others would be taken")
    return [Issuer(url=serve.jwt_issuer, audience=serve.jwt_audience, jwks_url=serve.jwt_jwks_url)]


def _open_log(serve: ServeSettings) -> DecisionLog | None:
    if not serve.decision_log:
        if serve.decision_log_key:
            raise ConfigError("serve.decision_log_key without serve.decision_log")
        return None
    path = Path(serve.decision_log)
    if serve.decision_log_key:
        key = load_or_make_ed25519(Path(serve.decision_log_key))
    else:
        key = ed25519.Ed25519PrivateKey.generate()
        _set_aside(path)
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    shown = path.with_name(path.name + ".pub")
    try:
        shown.write_bytes(public)
    except OSError as error:
        raise ConfigError(f"cannot write {shown}: {error.strerror}") from error
    log.info(
        "decision log", public_key=public.decode().splitlines()[1], of_this_run=not serve.decision_log_key
    )
    return DecisionLog(path, key, max_bytes=serve.decision_log_mb << 20, on_problem=_report_log)


def _report_log(problem: CloisterError) -> None:
    log.error("decisions are not on disk, and wait in memory", reason=problem.message)


def _set_aside(path: Path) -> None:
    """A key of this run cannot go on with a log that another run's key has signed."""
    stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    for former in (*rotated_parts(path), path, path.with_name(path.name + ".pub")):
        if former.exists():
            former.replace(path.with_name(f"{path.name}.{stamp}{former.name.removeprefix(path.name)}"))
