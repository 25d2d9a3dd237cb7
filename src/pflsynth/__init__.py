"""Personalised federated synthesis of MRI contrasts (pFLSynth, arXiv:2207.06509)."""

__version__ = "0.1.0"
