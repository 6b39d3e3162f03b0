"""Pure: settings and facts become a deployment spec and a memory plan. Imports `settings`, `catalog`, `result`."""
