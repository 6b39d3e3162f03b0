"""When an engine is off: every threshold with the figure that chose it (docs/lab/fingerprint.md).

All are multiples of the KL divergence that a sound engine has from the same reference (`Fingerprint.expected`). In W4A4
that is not small: FP4 rounds activations to steps of 25 % and more, so another order of sums moves some of them by a
step, and two sound engines are further from each other than each is from the mean of a few draws.
"""

# Over all points. Of 40 sound draws the lowest has 0.99 and the highest 1.13 of the expected divergence; sound engines
# on an H200 have 0.94 to 1.05, and 1.29 with an FP8 KV cache: little is left there.
WARN = 1.3
FAIL = 1.5
# Of one bucket, which has fewer points: its expected divergence grows by ERRORS standard errors of a mean whose points
# vary as much as they are large. The worst bucket of the same draws has 1.03 of that.
BUCKET_WARN = 1.35
BUCKET_FAIL = 1.7
ERRORS = 4.0
# A bucket stands out if its excess over the expected divergence is so many times that of every other one: 2.7 and more
# where rows of lm_head for the tokens of digits are wrong, 1.4 and less where a scale in attention is.
ALONE = 2.0
# Nats that count as nothing: an FP8 KV cache without scales is legitimate and adds 0.005.
FLOOR = 0.01
# Nats that NVFP4 may cost, where the file knows bf16 only: the demo model loses 0.11 in W4A4 and 0.06 in W4A16.
LOSS = 0.12
