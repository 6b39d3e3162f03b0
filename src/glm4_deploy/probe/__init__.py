"""Query an OpenAI-compatible endpoint and judge it. May import `report_model`, `plan`, `detect`, `catalog`, `run`.

The checks are in `checks/`, one file per family; `suite.checks()` finds them.
"""
