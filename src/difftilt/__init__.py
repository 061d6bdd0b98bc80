"""Posterior sampling under pre-trained diffusion priors."""
