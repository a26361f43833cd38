"""Untrusted pictures -> upright RGB pixels in sRGB, by Pillow, libavif and libheif."""
