"""What is known, as data: GPUs, images, profiles, variables, log signatures, each row with its source."""
