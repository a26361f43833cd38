"""The network: vision tower, decoder, latent kv cache and weights."""
