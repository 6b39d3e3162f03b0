"""Watch a running engine by its progress, and restart it on request. Imports `deploy`, `probe` and `detect`."""
