"""What a run says while it runs: console, CSV, Weights & Biases."""
