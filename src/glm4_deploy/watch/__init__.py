"""Watch and restart engines. May import `deploy`, `probe`, `report_model`, `plan`, `detect`, `logs`, `host`, `run`."""
