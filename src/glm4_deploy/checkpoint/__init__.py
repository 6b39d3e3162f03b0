"""Verify, repair, quantize and fingerprint checkpoints. May import `plan`, `fingerprint`, `catalog`."""
