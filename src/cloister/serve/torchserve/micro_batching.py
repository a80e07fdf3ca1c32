"""``ts.handler_utils.micro_batching``: a batch in small pieces, whose steps run side by side.

While one piece is in the model, the next is prepared and the last one made ready to send.

Source: pytorch/serve 0.12, ts/handler_utils/micro_batching.py (names and behaviour).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

HANDLER_METHODS = ("preprocess", "inference", "postprocess")


class MicroBatching:
    """Stands for a handler's ``handle``: ``handler.handle = MicroBatching(handler, size)``."""

    def __init__(
        self, parent_handler: Any, micro_batch_size: int = 1, parallelism: Mapping[str, int] | None = None
    ) -> None:
        self.handler = parent_handler
        self.micro_batch_size = micro_batch_size
        self.thread_local_data = threading.local()
        self._parallelism: dict[str, int] = {}
        self._stages: dict[str, ThreadPoolExecutor] = {}
        self.parallelism = dict(parallelism or {})

    @property
    def parallelism(self) -> dict[str, int]:
        """Threads of each step."""
        return dict(self._parallelism)

    @parallelism.setter
    def parallelism(self, parallelism: Mapping[str, int]) -> None:
        if not set(parallelism) <= set(HANDLER_METHODS):
            raise ValueError(f"the steps are {', '.join(HANDLER_METHODS)}")
        self._parallelism.update(parallelism)
        for step in HANDLER_METHODS:
            threads = max(1, self._parallelism.get(step, 1))
            old = self._stages.get(step)
            self._stages[step] = ThreadPoolExecutor(threads, thread_name_prefix=step)
            if old is not None:
                old.shutdown()

    def shutdown(self) -> None:
        """End the threads."""
        for stage in self._stages.values():
            stage.shutdown()

    def get_micro_batch_idx(self) -> int | None:
        """Which piece the calling step has at the moment."""
        index: int | None = getattr(self.thread_local_data, "micro_batch_idx", None)
        return index

    def handle(self, data: Any) -> list[Any]:
        """The answers to a batch, in its order."""
        size = self.micro_batch_size
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        running = [self._start(index, piece) for index, piece in enumerate(pieces)]
        return [answer for future in running for answer in future.result()]

    def __call__(self, data: Any, context: Any) -> Any:
        """What ``BaseHandler.handle`` does, in pieces."""
        start = time.perf_counter()
        self.handler.context = context
        if self.handler._is_describe():
            output: Any = [self.handler.describe_handle()]
        elif self.handler._is_explain():
            output = self.handler.explain_handle(self.handler.preprocess(data), data)
        else:
            output = self.handle(data)
        context.metrics.add_time("HandlerTime", round((time.perf_counter() - start) * 1000, 2), None, "ms")
        return output

    def _start(self, index: int, piece: Any) -> Future[Any]:
        """One piece through the steps; a step's thread hands over to the next and is free again."""
        answer: Future[Any] = Future()

        def run(step: int, value: Any) -> None:
            self.thread_local_data.micro_batch_idx = index
            try:
                result = self._method(step)(value)
                if step + 1 < len(HANDLER_METHODS):
                    self._stages[HANDLER_METHODS[step + 1]].submit(run, step + 1, result)
                else:
                    answer.set_result(result)
            except BaseException as error:  # noqa: BLE001 (it is raised where the answer is waited for)
                answer.set_exception(error)

        self._stages[HANDLER_METHODS[0]].submit(run, 0, piece)
        return answer

    def _method(self, step: int) -> Callable[[Any], Any]:
        method: Callable[[Any], Any] = getattr(self.handler, HANDLER_METHODS[step])
        return method
