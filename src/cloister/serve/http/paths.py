"""Paths of the HTTP surface. The well-known ones are RFC 8615 names; the gateway's is RFC 9540's."""

PING = "/ping"
MODELS = "/models"
METRICS = "/metrics"
PREDICTIONS = "/predictions/"
TOKEN = "/token"  # noqa: S105 (a path)
EVIDENCE = "/.well-known/cloister/evidence"
GATEWAY = "/.well-known/ohttp-gateway"
