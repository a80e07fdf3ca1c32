"""Tests of ``cloister.serve.remote``."""
