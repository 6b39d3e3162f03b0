"""Find the settings that serve a load best on this host, by starting, gating and measuring engines.

May import: `deploy`, `probe`, `plan`, `host`, `settings`, `catalog`.
"""
