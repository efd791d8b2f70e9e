"""What a run shows and leaves: console, figures, loggers, environment."""
