"""Watch engines, and restart them. May import `deploy`, `probe`, `report_model`, `plan`, `detect`, `host`, `run`."""
