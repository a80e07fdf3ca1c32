"""Frontend processes: they read callers' connections, and hand whole requests to the one core process."""
