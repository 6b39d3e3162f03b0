"""A load's fastest settings. May import `deploy`, `report`, `report_model`, `probe`, `plan`, `settings`, `catalog`."""
