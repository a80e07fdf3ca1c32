"""A verifier for callers that cannot verify themselves, such as web pages: evidence in, a verdict out."""
