"""Feed training: sources of triplets, token cache, order of rows, batches."""
