"""Inference engines: a model's file in, arrays in, arrays out. No file is written and nothing is sent."""
