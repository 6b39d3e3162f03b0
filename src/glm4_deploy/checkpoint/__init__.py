"""Verify, repair and quantize checkpoints. Imports `catalog`, `result` and `files`."""
