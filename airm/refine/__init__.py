"""``python -m airm.refine``: what it reads, what it writes, and the memory that it takes."""
