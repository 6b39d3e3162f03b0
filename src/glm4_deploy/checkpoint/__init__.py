"""Verify, repair and quantize checkpoints. May import `plan`, `catalog`."""
