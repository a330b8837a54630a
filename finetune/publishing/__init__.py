"""What a release is made of: its files, what the run says of itself, the model card, and what must stay out."""
