"""Pure: load, users and limits → a number of engines, by simulation. May import `report_model`, `plan`, `catalog`."""
