"""How are numbers shown in a browser? Pages of one file: sections, tables, charts and pictures."""
