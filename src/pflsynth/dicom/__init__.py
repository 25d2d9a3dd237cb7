"""DICOM series to a BIDS-like folder without identifying tags."""
