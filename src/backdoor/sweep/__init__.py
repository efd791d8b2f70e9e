"""Many jobs: what they are, what is kept of them, and who runs them."""
