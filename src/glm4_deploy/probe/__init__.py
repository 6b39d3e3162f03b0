"""Ask an OpenAI-compatible endpoint and judge. May import `report_model`, `plan`, `detect`, `catalog`, `run`.

A check is one small file in `checks/`; CHECKS is the table that they enter themselves into.
"""

from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.suite import CHECKS, load_checks, run_suite, soak
from glm4_deploy.report_model import Suite, SuiteReport

load_checks()

__all__ = ["CHECKS", "Options", "ProbeTarget", "Suite", "SuiteReport", "run_suite", "soak"]
