"""Watch a running engine by its progress, and restart it on request. May import `deploy`, `probe`, `detect`, `host`."""
