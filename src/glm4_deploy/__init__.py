"""Deploy GLM-4-9B-chat in NVFP4 with Docker Compose, and prove that it answers sanely."""

__version__ = "0.1.0"
