"""Backbones: image to four maps of stride 4 to 32."""
