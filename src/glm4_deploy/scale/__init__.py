"""Pure: a measured load, users and limits become a number of engines, by simulation. Imports `report_model`."""
