"""Pure: the right log probabilities of a checkpoint, and how far an engine's are from them. May import nothing."""
