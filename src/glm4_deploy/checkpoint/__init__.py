"""Verify, repair and quantize checkpoints. May import `catalog`."""
