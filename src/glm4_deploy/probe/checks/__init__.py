"""The checks, one file per family. Each registers its checks with `suite.check`; nothing else lists them."""
