"""Pure: what an engine's log, or a person's words, say about a failure. May import `catalog`."""
