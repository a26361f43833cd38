"""The network: vision tower, decoder, latent key-value cache and weights."""
