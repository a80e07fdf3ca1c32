"""The model server: one frontend that speaks HTTP, one worker process for each model."""
