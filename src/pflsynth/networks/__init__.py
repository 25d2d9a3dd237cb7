"""The networks of pFLSynth (arXiv:2207.06509, Sec. III) and their losses."""
