"""Pure: a deployment spec becomes files. Imports `plan`."""
