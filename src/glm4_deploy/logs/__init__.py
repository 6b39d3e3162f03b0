"""Pure: what an engine's log says. Imports `catalog` and `text`."""
