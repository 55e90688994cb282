"""Other ways to networks of many widths, and networks for one width, built from this project's parts."""
