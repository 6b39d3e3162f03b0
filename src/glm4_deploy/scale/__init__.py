"""Pure: a measured load, users and limits become a number of engines, by simulation. Imports `plan`, `report_model`."""
