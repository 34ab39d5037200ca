"""The phases of a decision, one module each. `decide.PHASES` lists them."""
