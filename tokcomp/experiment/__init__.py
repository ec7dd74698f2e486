"""Runs: their configuration, what they measure, and the record that they leave."""
