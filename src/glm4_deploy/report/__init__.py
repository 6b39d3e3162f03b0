"""Results become terminal text, JSON, JUnit and HTML. May import `report_model`, `plan`."""
