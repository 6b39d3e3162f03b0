"""Query an OpenAI-compatible endpoint and judge it. May import `report_model`, `plan`, `detect`, `catalog`, `run`.

The checks are in `checks/`, one file per family; each registers itself in CHECKS.
"""

from glm4_deploy.probe.client import ProbeTarget
from glm4_deploy.probe.probe import Options
from glm4_deploy.probe.suite import CHECKS, load_checks, run_suite, soak
from glm4_deploy.report_model import Suite, SuiteReport

load_checks()

__all__ = ["CHECKS", "Options", "ProbeTarget", "Suite", "SuiteReport", "run_suite", "soak"]
