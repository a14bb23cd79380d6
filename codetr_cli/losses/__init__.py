"""Everything that only training needs: assignment, denoising and the loss terms."""
