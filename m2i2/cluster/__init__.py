"""Runs on a SLURM cluster: what is asked of it, the jobs, how they are followed, pipelines and sweeps of them."""
