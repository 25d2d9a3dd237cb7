"""Missing contrasts of whole volumes: NIfTI in, NIfTI out."""
