"use strict";
// Tables: sorted by their titles, long ones opened by a button. Without scripts all is there, in the first order.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const titles = [...table.tHead.rows[0].cells];
  const shown = Number(table.dataset.shown || 0);
  const hide = () => [...body.rows].forEach((row, i) => row.classList.toggle("more", shown > 0 && i >= shown));
  titles.forEach((title, column) => {
    if (body.rows.length < 2 || !title.textContent) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const isNumber = !title.classList.contains("text");
      const first = isNumber ? "descending" : "ascending";
      const order = title.getAttribute("aria-sort") === first ? (isNumber ? "ascending" : "descending") : first;
      titles.forEach((other) => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const key = (row) => row.cells[column].dataset.key;
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === "" || y === "") return (x === "") - (y === "");
        return sign * (isNumber ? Number(x) - Number(y) : x.localeCompare(y));
      });
      body.append(...rows);
      if (table.dataset.shown) hide();
    });
  });
  if (shown > 0 && body.rows.length > shown) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "all";
    button.textContent = `Show all ${body.rows.length} rows`;
    button.addEventListener("click", () => {
      delete table.dataset.shown;
      [...body.rows].forEach((row) => row.classList.remove("more"));
      button.remove();
    });
    table.parentElement.after(button);
    hide();
  }
}
