"""Pre-trained encoders of one modality, one file per family."""
