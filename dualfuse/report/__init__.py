"""Reports of runs as single HTML pages."""
