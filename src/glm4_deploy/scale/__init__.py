"""How many GPUs N users need: a simulation of engines behind a router, fitted to a measured load. Pure."""
