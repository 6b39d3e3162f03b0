"""The only room that changes the world: Compose, Docker, processes, the gate, releases, rollback."""
