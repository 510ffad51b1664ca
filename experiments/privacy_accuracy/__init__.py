"""Accuracy against epsilon for the four units of privacy."""
