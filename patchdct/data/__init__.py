"""Data sets: registration and checks, synthetic shapes, and the mapper that names unreadable images."""
