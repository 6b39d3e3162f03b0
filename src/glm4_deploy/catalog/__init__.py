"""What is known, as data: GPUs, images, profiles, signatures, each row with its source. May import nothing."""
