"""Software platforms, Intel's and AMD's: real evidence, byte for byte, under roots of their own. They protect
nothing.

They exist so that the whole production path runs on any machine. Such a root is no vendor's, so every verdict
on its evidence says ``simulated``, and no reference values accept it without ``allow_simulated = true``.
"""

from cloister.attest.simulated.platform import SimulatedPlatform
from cloister.attest.simulated.sgx import SimulatedSgxPlatform
from cloister.attest.simulated.snp import SimulatedSnpPlatform

__all__ = ["SimulatedPlatform", "SimulatedSgxPlatform", "SimulatedSnpPlatform"]
