"""Watch an engine by its progress, and restart it. May import `deploy`, `probe`, `plan`, `detect`, `host`, `run`."""
