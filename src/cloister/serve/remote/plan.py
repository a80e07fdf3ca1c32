"""Which model a host's next free slot should serve. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from cloister.serve.remote.messages import ModelKey


def next_model(
    *,
    slots: int,
    running: Sequence[ModelKey],
    has: Collection[str],
    workers: Mapping[ModelKey, int],
    held: frozenset[ModelKey] = frozenset(),
) -> ModelKey | None:
    """The model that this host should start another worker of; None if it has enough to do.

    The model with the fewest workers, here and on all hosts, goes first: so every model of a host that has
    slots for all of them is served there, and what is left goes round.

    Args:
        slots: how many workers the host runs; 0 means one of each model.
        running: the models of its workers, starting ones too.
        has: digests of what it has in its store.
        workers: what the frontend serves, with the number of workers of each.
        held: models that have just failed there.
    """
    there = [key for key in workers if key.digest in has and key not in held]
    own = Counter(running)
    if slots == 0:
        there = [key for key in there if not own[key]]
    elif len(running) >= slots:
        return None
    return min(there, key=lambda key: (own[key], workers[key], key.name, key.version), default=None)
