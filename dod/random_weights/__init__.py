"""Full-size bases and checkpoints with random weights, in the layouts of the published ones."""
