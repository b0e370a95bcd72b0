"""One frozen, checked dataclass of parameters for each recipe."""
