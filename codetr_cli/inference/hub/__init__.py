"""Models on the Hub of Hugging Face: a folder with weights, settings and model card, up and down."""
