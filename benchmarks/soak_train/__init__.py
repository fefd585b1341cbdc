"""What a training run withstands."""
