"""How well short trainings rank networks: truth tables, rank correlations, ceilings, replays. Pure."""
