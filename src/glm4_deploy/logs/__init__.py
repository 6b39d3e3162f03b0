"""Pure: what an engine's log says. May import `catalog`."""
