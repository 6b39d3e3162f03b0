"""Pure: settings become a deployment spec and a memory plan. May import `settings`, `catalog`."""
