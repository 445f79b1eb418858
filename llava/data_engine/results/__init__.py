"""Report what rounds gained on the hold-out, over the base and over other arms, and what that cost."""
