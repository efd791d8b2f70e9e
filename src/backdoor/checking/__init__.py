"""What a value of a config may be: annotations, ranges, kinds."""
