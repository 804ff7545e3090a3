"""Reports: what a run reached, as one page that needs nothing else."""
