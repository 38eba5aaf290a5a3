"""Evaluate models: metrics, the preference probe, verification at several K, tables and the report."""
