"""Deploy GLM-4-9B-chat in NVFP4 with Docker Compose, and prove that it answers sanely."""

try:
    from glm4_deploy._version import __version__
except ImportError:  # a source tree that was neither built nor installed
    __version__ = "0.0.0"

__all__ = ["__version__"]
