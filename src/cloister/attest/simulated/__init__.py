"""A software Intel platform: real quotes, byte for byte, under a root of its own. It protects nothing.

It exists so that the whole production path runs on any machine. Its root is no vendor's, so every verdict
on its evidence says ``simulated``, and no reference values accept it without ``allow_simulated = true``.
"""

from cloister.attest.simulated.platform import SimulatedPlatform

__all__ = ["SimulatedPlatform"]
