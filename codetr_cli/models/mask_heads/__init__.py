"""Networks that draw the mask of a region."""
