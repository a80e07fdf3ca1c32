"""NVIDIA GPU and NVSwitch reports: bytes, endorsements, verification, claims."""

from cloister.attest.nvidia.endorsements import NvidiaEndorsements
from cloister.attest.nvidia.evidence import split_devices
from cloister.attest.nvidia.verify import NvidiaClaims

__all__ = ["NvidiaClaims", "NvidiaEndorsements", "split_devices"]
