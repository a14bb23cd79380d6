"""How is it served? A detector behind HTTP (`codetr serve`), and on a page in the browser (`codetr demo`)."""
