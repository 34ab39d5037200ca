"""The phases of a decision, one module each. `decide` has them in a list."""
