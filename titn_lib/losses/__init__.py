"""What a student is trained on: labels, a teacher's logits, a teacher's features."""
