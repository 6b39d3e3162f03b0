"""Ask an endpoint and judge it. May import `report_model`, `plan`, `detect`, `logs`, `fingerprint`, `catalog`, `run`.

The checks are in `checks/`, one file per family; `suite.checks()` finds them.
"""
