"""Training: the priors (`pretrain`), the two stages of the paper (`stages`), and the loop they share (`loop`)."""
