"""Pass requests on to an engine, judge its answers as they pass, and cut what loops. May import `detect`, `host`."""
