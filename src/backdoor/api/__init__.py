"""What `import backdoor as bd` offers: runs, finished runs, poisoned data and measurements, as Python calls."""
