"""Turn prompts into token ids and label masks, as lists of integers. No torch, no files."""
