"""Data sets, augmentation and mixing: uint8 images in, uint8 images out."""
