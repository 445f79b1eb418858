"""Turn a round's plan into prompts: choose images, say what is in them, fill the prompt templates in."""
