"""How a picture is read: headers, limits, decoding."""
