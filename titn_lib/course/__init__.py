"""What the notebooks share: the set-up cell, example images, and the exercises' checks."""
