"""Commands for people who want to talk with the model."""
