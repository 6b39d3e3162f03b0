"""Not vLLM: a stand-in for it that only the journeys put on their path (entrypoints/openai/api_server.py)."""
