"""A worker: one process, one model, requests in and answers out over an inherited socket.

Started by the frontend only, with an environment that the frontend chose. It neither listens nor connects.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cloister.crypto.locked import forbid_dumps
from cloister.errors import CloisterError, MalformedInput, WorkerLost
from cloister.serve.direct.described import read_spec
from cloister.serve.frames import Confined, Fault, FrameSocket, Load, Loaded, LoadFailed, ToWorker
from cloister.serve.handler import Handler, describe_failure
from cloister.serve.hardening import die_with_parent
from cloister.serve.loading import load_handler
from cloister.serve.process import OUT_OF_MEMORY_EXIT
from cloister.serve.sandbox.confine import confine
from cloister.serve.session import Session

if TYPE_CHECKING:
    from cloister.serve.direct.model import DirectModel


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
    except MemoryError:
        return OUT_OF_MEMORY_EXIT
    finally:
        connection.close()


def _serve(frames: FrameSocket[ToWorker]) -> int:
    first = frames.read()
    if first is None or not isinstance(first[0], Load):
        return 1
    load = first[0]
    model = _load(frames, load)
    if model is None:
        return 1
    # What loading made stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    if not isinstance(model, Handler):
        from cloister.serve.direct.session import serve_direct

        return serve_direct(frames, model, load)
    frames.write(Loaded())
    session = Session(
        frames, model, batch_size=load.batch_size, idempotent=load.idempotent, decode=load.decode
    )
    return session.run()


def _load(frames: FrameSocket[ToWorker], load: Load) -> Handler | DirectModel | None:
    """The handler, or the model that needs none; None after telling the frontend why there is none."""
    try:
        if load.cores:
            os.sched_setaffinity(0, load.cores)
        state = confine(
            load.sandbox,
            model=Path(load.model_dir),
            scratch=Path(load.scratch),
            keep=[frames.fileno()],
            gpu=load.gpu_id is not None,
        )
        frames.write(Confined(state))
        os.chdir(load.model_dir)
        if not load.protected:
            logging.basicConfig(level=logging.INFO, format=f"{load.name} %(levelname)s %(message)s")
        spec = None if load.handler else read_spec(Path(load.model_dir))
        if spec is not None:
            # Imported here: it needs numpy, which a handler need not.
            from cloister.serve.direct.model import load_direct

            folder = Path(load.model_dir)
            return load_direct(folder, spec, threads=load.threads, show_text=not load.protected)
        return load_handler(
            Path(load.model_dir),
            load.handler,
            name=load.name,
            version=load.version,
            batch_size=load.batch_size,
            gpu_id=load.gpu_id,
            envelope=load.envelope,
            metrics=load.metrics,
            show_text=not load.protected,
        )
    except CloisterError as error:
        frames.write(LoadFailed(Fault(error.message)))
    except BaseException as error:  # noqa: BLE001 (a handler may raise anything, SystemExit too)
        reason = "the handler could not be loaded"
        frames.write(LoadFailed(describe_failure(reason, error, show_text=not load.protected)))
    return None


if __name__ == "__main__":
    sys.exit(main())
