"""How a detector is offered to others: over HTTP and on a page in the browser."""
