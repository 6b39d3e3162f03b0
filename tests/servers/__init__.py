"""Endpoints for tests: one that behaves as vLLM 0.32 does, and twins of it that each misbehave in one named way."""
