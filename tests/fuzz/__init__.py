"""Readers of files against files that were real and then damaged: `make fuzz`.

Each ends in success or in a UserError, within limits of memory and time.
"""
