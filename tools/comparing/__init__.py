"""Methods that refine masks, compared on the same coarse masks: what ``tools/compare_refiners.py`` is made of."""
