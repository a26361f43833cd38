"""Untrusted bytes -> `Frames`: sandboxed decoding of videos, images and documents."""
