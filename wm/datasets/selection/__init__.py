"""Select triplets by stratified top-K (Algorithm 1)."""
