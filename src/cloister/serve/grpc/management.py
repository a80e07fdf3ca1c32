"""TorchServe's ``ManagementAPIsService``.

Source: pytorch/serve 0.12, ManagementImpl.java. A number that is not above 0 means the default.
"""

from __future__ import annotations

from typing import Any

import grpc
import msgspec

from cloister.errors import CloisterError
from cloister.serve.control import ModelControl
from cloister.serve.grpc.calls import CallFailed, Context
from cloister.serve.grpc.messages import MANAGEMENT, message
from cloister.serve.grpc.status import failure_of, read_failure
from cloister.serve.http.management import customized_metadata
from cloister.serve.http.predictions import render_answer
from cloister.serve.refusals import BadRequest, NoWorker

_Response = message(f"{MANAGEMENT}.ManagementResponse")
_TEXTS = ("url", "model_name", "handler", "runtime")
_NUMBERS = ("batch_size", "max_batch_delay", "initial_workers", "response_timeout", "startup_timeout")
# A caller's mistake is INVALID_ARGUMENT here, also where HTTP has a status of its own for it.
_CALLERS_FAULTS = (400, 403, 409)


class ManagementService:
    """Registers, scales, describes and removes models."""

    def __init__(self, control: ModelControl, *, model_api: bool) -> None:
        self._control = control
        self._model_api = model_api

    async def DescribeModel(self, request: Any, _: Context) -> Any:  # noqa: N802 (the service's own names)
        """Facts of one version, or of all, as JSON."""
        name, version = request.model_name, request.model_version or None
        try:
            facts = self._control.describe(name, version)
            if request.customized and version != "all":
                facts[0]["customizedMetadata"] = await self._ask_handler(name, version)
        except CloisterError as error:
            raise _refused(error) from error
        return _Response(msg=_pretty(facts))

    async def ListModels(self, request: Any, _: Context) -> Any:  # noqa: N802
        """One page of the names, as JSON."""
        limit = request.limit if request.limit > 0 else 100
        return _Response(msg=_pretty(self._control.list_models(limit, request.next_page_token)))

    async def RegisterModel(self, request: Any, _: Context) -> Any:  # noqa: N802
        """Register the model at ``url``."""
        self._need_model_api()
        parameters = {name: getattr(request, name) for name in _TEXTS if getattr(request, name)}
        parameters |= {name: str(getattr(request, name)) for name in _NUMBERS if getattr(request, name) > 0}
        if request.s3_sse_kms:
            parameters["s3_sse_kms"] = "true"
        try:
            outcome = await self._control.register(parameters, synchronous=request.synchronous)
        except CloisterError as error:
            raise _refused(error) from error
        return _Response(msg=outcome.message)

    async def ScaleWorker(self, request: Any, _: Context) -> Any:  # noqa: N802
        """Set how many workers a model has."""
        low = request.min_worker if request.min_worker > 0 else 1
        high = request.max_worker if request.max_worker > 0 else low
        parameters = {"min_worker": str(low), "max_worker": str(high)}
        try:
            outcome = await self._control.scale(
                request.model_name,
                request.model_version or None,
                parameters,
                synchronous=request.synchronous,
            )
        except CloisterError as error:
            raise _refused(error) from error
        return _Response(msg=outcome.message)

    async def SetDefault(self, request: Any, _: Context) -> Any:  # noqa: N802
        """Choose the version that answers where none is named."""
        try:
            outcome = self._control.set_default(request.model_name, request.model_version)
        except CloisterError as error:
            raise _refused(error) from error
        return _Response(msg=outcome.message)

    async def UnregisterModel(self, request: Any, _: Context) -> Any:  # noqa: N802
        """Let the model's requests finish, and remove it."""
        self._need_model_api()
        try:
            if not request.model_name:
                raise BadRequest("Parameter model_name is required.")
            outcome = await self._control.unregister(request.model_name, request.model_version or None)
        except CloisterError as error:
            raise _refused(error) from error
        return _Response(msg=outcome.message)

    async def _ask_handler(self, name: str, version: str | None) -> object:
        supervisor = self._control.find(name, version).supervisor
        if not supervisor.config.max_workers:
            raise NoWorker(
                f'Model "{name}" has no worker to serve describe request. '
                "Please use scale workers API to add workers."
            )
        answer = await supervisor.describe()
        response = render_answer(answer)
        if response.status >= 400:
            failure = read_failure(response)
            raise CallFailed(failure.code, failure.details)
        return customized_metadata(bytes(answer.body))

    def _need_model_api(self) -> None:
        if not self._model_api:
            raise CallFailed(
                grpc.StatusCode.PERMISSION_DENIED,
                "Model API disabled\norg.pytorch.serve.archive.model.ModelException",
            )


def _refused(error: CloisterError) -> CallFailed:
    if isinstance(error, CallFailed):
        return error
    failure = failure_of(error)
    code = grpc.StatusCode.INVALID_ARGUMENT if failure.status in _CALLERS_FAULTS else failure.code
    return CallFailed(code, failure.details)


def _pretty(document: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode()
