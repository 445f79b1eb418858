"""Where each download of the training data lies under its folder, and whether all of it is there."""
