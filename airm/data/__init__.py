"""Data of refinement: pairs of image and mask, their registration, and samples made of them."""
