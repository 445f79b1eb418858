"""Answering questions about images: an engine that knows no files, and runs that know no benchmark."""
