"""Where devices run. The server sees a Flower Grid and nothing else."""
