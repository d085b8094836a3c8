"""Evertrain measured against the loop one writes first; see README.md."""
