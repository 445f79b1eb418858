"""Chat with the model on a terminal."""
