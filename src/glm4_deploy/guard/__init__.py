"""Pass requests on to an engine, judge its answers as they pass, and cut those that loop. May import `detect`."""
