"""Attesters: one file for each way in which a machine hands out its own evidence."""
