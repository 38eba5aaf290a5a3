"""Ray drivers, one file a stage: ``python -m jobs.NAME recipe.toml key=value``."""
