"""The papers' tables made anew: what their rows are, the runs that make them, and tables that set both side by side."""
