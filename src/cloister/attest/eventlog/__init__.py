"""TCG event logs: what was measured into the registers that hardware attests (PCRs, RTMRs)."""

from cloister.attest.eventlog.log import Event, EventLog, parse_event_log
from cloister.attest.eventlog.replay import MeasuredEvent
from cloister.attest.eventlog.rtmrs import RtmrEvents, attach_event_log, replay

__all__ = [
    "Event",
    "EventLog",
    "MeasuredEvent",
    "RtmrEvents",
    "attach_event_log",
    "parse_event_log",
    "replay",
]
