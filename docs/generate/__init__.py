"""Write pages of the documentation from the code: recipes, benchmarks, the notebook."""
