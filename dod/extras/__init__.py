"""Steps after the training of the paper: fitted post-processing, pruned detail modules, averaged weights."""
