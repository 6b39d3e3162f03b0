"""Pure: a deployment spec becomes files. May import `plan`, `settings`, `catalog`."""
