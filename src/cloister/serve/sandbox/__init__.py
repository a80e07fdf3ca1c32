"""What a worker does to itself before it runs a model's code: see ``confine``."""
