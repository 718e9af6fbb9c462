"""Pictures that explain the PatchDCT head: ``tools/draw_patchdct_figures.py`` is their command line."""
