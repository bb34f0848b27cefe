"""The ids of token sequences that data and models agree on."""

UNKNOWN = 0
PAD = 1
FIRST_WORD = 2
