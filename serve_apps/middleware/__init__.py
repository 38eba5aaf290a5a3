"""Wrap the HTTP app: trace ids and bounds, API keys, retries inside Ray's proxy."""
