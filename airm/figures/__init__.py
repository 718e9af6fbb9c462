"""What AIRM's figures show, as numbers and as pictures: ``tools/draw_airm_figures.py`` is their command line."""
