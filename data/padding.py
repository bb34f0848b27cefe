"""The ids of token sequences that have a meaning of their own, on which data and models agree."""

UNKNOWN = 0  # a word that is not in the vocabulary
PAD = 1  # after the end of a sequence
WORDS = 2  # the first word's; words follow by falling frequency
