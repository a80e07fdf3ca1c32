"""``ts.torch_handler.request_envelope``: other forms of request and answer around a handler."""
