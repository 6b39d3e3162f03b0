"""Results become terminal text, JSON, JUnit and HTML. Imports `result` and `report_model`."""
