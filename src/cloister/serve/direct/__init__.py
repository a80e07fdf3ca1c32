"""Models that are served by an engine, without a handler of their own."""
