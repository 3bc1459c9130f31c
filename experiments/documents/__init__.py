"""What makes the pictures and the notebook of docs/."""
