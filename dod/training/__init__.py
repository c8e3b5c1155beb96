"""Training: the priors, the two stages of the paper, and calibration."""
