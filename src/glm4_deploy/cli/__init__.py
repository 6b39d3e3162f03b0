"""The command line: one thin function a command. Commands import what they need inside, so `--help` is instant."""

from glm4_deploy.cli.app import main

__all__ = ["main"]
