"""Encoders that Detectron2 lacks, and their published weights."""
