"""One small file a family; each enters its checks by importing `check`. Nothing else lists them."""
