"""The HTTP surface: one core that maps a request to a response, and the transports that feed it."""
