"""One run: data, attack, victim, defense, evaluation, record."""
