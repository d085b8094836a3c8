"""The demo: New York flights, with truly delayed labels."""
