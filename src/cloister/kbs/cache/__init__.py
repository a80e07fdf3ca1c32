"""The key cache: a TEE beside the workers that holds their keys, and serves on while the broker is down."""
