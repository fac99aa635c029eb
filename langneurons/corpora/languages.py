"""The language sets of Mondal et al. 2025 (arXiv 2503.17456), as their code defines them.

A score that compares languages depends on which languages it compares: name the set with the result.

Example:
    >>> set(SET_XNLI) <= set(SET5)
    True
"""

SET1 = ("en", "fr", "es", "vi", "id", "ja", "zh")
SET2 = ("en", "fr", "vi", "zh", "bn", "hi", "te", "mr")
SET3 = ("bn", "hi", "ta", "te", "mr", "ur", "kn", "ml", "pa")
SET4 = (*SET1, "bn", "hi", "te")
SET5 = ("en", "fr", "es", "vi", "id", "ja", "zh", "bn", "hi", "ta", "te", "mr", "ur", "kn", "ml", "pa")
SET6 = ("en", "bn", "hi", "ta", "te", "mr", "ur", "kn", "ml", "pa")
SET_XNLI = ("en", "fr", "es", "vi", "zh", "ur", "hi")
