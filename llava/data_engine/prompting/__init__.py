"""Improve a prompt template by what it wrote: review, suggest a change of one rule, accept what helps."""
