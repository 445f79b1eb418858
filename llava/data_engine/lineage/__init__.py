"""Know what a round trains on, and where each of its training records comes from."""
