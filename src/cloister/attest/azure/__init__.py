"""Confidential machines on Azure: virtual TPM, paravisor's report, and the hardware under it."""

from cloister.attest.azure.claims import AzureSnpClaims, AzureTdxClaims
from cloister.attest.azure.hcl import HclReport, check_runtime_binding, parse_hcl_report

__all__ = ["AzureSnpClaims", "AzureTdxClaims", "HclReport", "check_runtime_binding", "parse_hcl_report"]
