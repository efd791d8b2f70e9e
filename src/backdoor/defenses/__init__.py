"""Defenses: one folder a method."""
