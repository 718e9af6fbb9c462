"""Data sets: their folders, COCO format and its checks, outlines of drawn ones, and the mapper."""
