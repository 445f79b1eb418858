"""Prompts as ids: lists of integers in, lists of integers out. No torch, no files."""
