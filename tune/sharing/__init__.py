"""A run as one folder or file to hand on: its records, cleared of what is private; checked when it is opened."""
