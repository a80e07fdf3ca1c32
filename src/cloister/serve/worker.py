"""A worker: one process, one model, requests in and answers out over an inherited socket.

Started by the frontend only, with an environment that the frontend chose. It neither listens nor connects.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cloister.crypto.locked import forbid_dumps
from cloister.errors import CloisterError, MalformedInput, WorkerLost
from cloister.serve.archive import unpack_archive
from cloister.serve.frames import (
    AnswerItem,
    Answers,
    Fault,
    Frame,
    FrameSocket,
    Load,
    Loaded,
    LoadFailed,
    Predict,
    Stop,
    ToWorker,
    split_payload,
)
from cloister.serve.handler import Handler, Outcome, describe_failure, load_handler
from cloister.serve.hardening import die_with_parent

FLUSH_S = 0.002
"""Answers wait at most this long for others of the same frame."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until the frontend says stop or is gone."""
    parser = argparse.ArgumentParser(prog="cloister.serve.worker")
    parser.add_argument("--fd", type=int, required=True, help="connected UNIX socket, inherited")
    parser.add_argument("--parent", type=int, required=True, help="process to end with")
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    forbid_dumps()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=options.fd)
    os.set_inheritable(options.fd, False)
    frames: FrameSocket[ToWorker] = FrameSocket(connection, ToWorker)  # type: ignore[arg-type]
    try:
        return _serve(frames)
    except (WorkerLost, MalformedInput):
        return 1
    finally:
        connection.close()


def _serve(frames: FrameSocket[ToWorker]) -> int:
    first = frames.read()
    if first is None or not isinstance(first[0], Load):
        return 1
    handler = _load(frames, first[0])
    if handler is None:
        return 1
    frames.write(Loaded())
    while (frame := frames.read()) is not None:
        message, _ = frame
        if isinstance(message, Stop):
            return 0
        _answer(frames, handler, frame)
    return 0


def _load(frames: FrameSocket[ToWorker], load: Load) -> Handler | None:
    """The handler, or None after telling the frontend why there is none."""
    folder = Path(load.folder)
    try:
        # Opened anew: an inherited descriptor shares its file position with the frontend and other workers.
        with Path(f"/proc/self/fd/{load.archive_fd}").open("rb") as archive:
            os.close(load.archive_fd)
            manifest = unpack_archive(archive, folder)
        os.chdir(folder)
        if not load.protected:
            logging.basicConfig(level=logging.INFO, format=f"{load.name} %(levelname)s %(message)s")
        return load_handler(
            folder,
            manifest,
            name=load.name,
            batch_size=load.batch_size,
            gpu_id=load.gpu_id,
            show_text=not load.protected,
        )
    except CloisterError as error:
        frames.write(LoadFailed(Fault(error.message)))
    except BaseException as error:  # noqa: BLE001 (a handler may raise anything, SystemExit too)
        reason = "the handler could not be loaded"
        frames.write(LoadFailed(describe_failure(reason, error, show_text=not load.protected)))
    return None


def _answer(frames: FrameSocket[ToWorker], handler: Handler, frame: Frame[ToWorker]) -> None:
    """Answer the requests of one frame, one by one, in as few frames as the delay limit allows."""
    message, payload = frame
    if not isinstance(message, Predict):
        raise MalformedInput(f"expected a predict message, found {type(message).__name__}")
    done: list[AnswerItem] = []
    bodies: list[bytes] = []
    flushed = time.monotonic()
    for item, body in zip(
        message.items, split_payload((i.body_bytes for i in message.items), payload), strict=True
    ):
        outcome: Outcome = handler.answer((item,), (body,))[0]
        done.append(
            AnswerItem(item.number, outcome.status, outcome.headers, len(outcome.body), outcome.fault)
        )
        bodies.append(outcome.body)
        now = time.monotonic()
        if now - flushed > FLUSH_S:
            frames.write(Answers(done), bodies)
            done, bodies, flushed = [], [], now
    if done:
        frames.write(Answers(done), bodies)


if __name__ == "__main__":
    sys.exit(main())
