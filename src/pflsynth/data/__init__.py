"""From NIfTI volumes of several sites to slices that a network can be trained on."""
