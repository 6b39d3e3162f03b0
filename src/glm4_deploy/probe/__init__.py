"""HTTP checks against an OpenAI-compatible endpoint: `run_suite` asks, judges and returns a Report.

A check is one small file in `checks/`; CHECKS is the table that they enter themselves into.
"""

from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.registry import CHECKS, load
from glm4_deploy.probe.run import run_suite
from glm4_deploy.probe.soak import soak
from glm4_deploy.probe.target import Target
from glm4_deploy.samples import Report, Suite

load()

__all__ = ["CHECKS", "Options", "Report", "Suite", "Target", "run_suite", "soak"]
