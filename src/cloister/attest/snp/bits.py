"""Bit fields of a report, decoded to names.

===== ====================== ==================================================================
bit   of the guest policy    the guest permits or demands
===== ====================== ==================================================================
0-7   abi_minor              lowest minor version of the firmware's interface
8-15  abi_major              lowest major version
16    smt                    simultaneous multithreading is permitted
17    (always 1)
18    migrate_ma             a migration agent is permitted
19    debug                  the host may read and write the guest's memory
20    single_socket          the guest runs on one socket only
21    cxl_allow              CXL devices are permitted
22    mem_aes_256_xts        memory is encrypted with AES-256-XTS
23    rapl_dis               energy counters are off
24    ciphertext_hiding_dram the host cannot read ciphertext
25    page_swap_disable      pages may not be swapped out
===== ====================== ==================================================================

===== ====================== ==================================================================
bit   of platform_info       the platform has
===== ====================== ==================================================================
0     smt_en                 simultaneous multithreading on
1     tsme_en                transparent memory encryption on
2     ecc_en                 memory with error correction
3     rapl_dis               energy counters off
4     ciphertext_hiding_dram ciphertext hidden from the host
5     alias_check_complete   memory checked for aliases since the last reset (BadRAM)
7     tio_en                 trusted I/O on
===== ====================== ==================================================================

Source: AMD 56860 revision 1.58, GUEST_POLICY and PLATFORM_INFO.
"""

from __future__ import annotations

_POLICY = {
    16: "smt",
    18: "migrate_ma",
    19: "debug",
    20: "single_socket",
    21: "cxl_allow",
    22: "mem_aes_256_xts",
    23: "rapl_dis",
    24: "ciphertext_hiding_dram",
    25: "page_swap_disable",
}
_PLATFORM = {
    0: "smt_en",
    1: "tsme_en",
    2: "ecc_en",
    3: "rapl_dis",
    4: "ciphertext_hiding_dram",
    5: "alias_check_complete",
    7: "tio_en",
}
POLICY_FLAGS = tuple(_POLICY.values())
PLATFORM_FLAGS = tuple(_PLATFORM.values())


def decode_policy(policy: int) -> dict[str, bool | int]:
    """The guest policy by name."""
    flags = {name: bool(policy >> bit & 1) for bit, name in _POLICY.items()}
    return {"abi_major": policy >> 8 & 0xFF, "abi_minor": policy & 0xFF, **flags}


def decode_platform_info(platform_info: int) -> dict[str, bool]:
    """The platform's state by name."""
    return {name: bool(platform_info >> bit & 1) for bit, name in _PLATFORM.items()}
