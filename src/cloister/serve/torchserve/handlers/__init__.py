"""``ts.torch_handler``'s built-in handlers."""
