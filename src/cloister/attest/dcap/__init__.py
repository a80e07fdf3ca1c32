"""Intel DCAP quotes (SGX, TDX): bytes, collateral, verification, claims."""

from cloister.attest.dcap.endorsements import DcapEndorsements
from cloister.attest.dcap.sgx import SgxClaims
from cloister.attest.dcap.tdx import TdxClaims, attach_events

__all__ = ["DcapEndorsements", "SgxClaims", "TdxClaims", "attach_events"]
