"""Settings for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The machines that run these tests are shared and sometimes slow: how long an example takes says nothing
# about the code, and no test here asserts a time.
settings.register_profile("shared-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared-machine")
