"""Generate answers to requests that share images and prompts."""
