"use strict";
// Tables: sorted by their titles, long ones opened by a button, searched by name. Without scripts all is there, in the
// first order.
const FIND_FROM = 25;

function finder(items, what, text) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("output");
  label.className = "find";
  input.type = "search";
  label.append(`Find ${what} `, input, " ", count);
  input.addEventListener("input", () => {
    const words = input.value.trim().toLocaleLowerCase();
    let found = 0;
    for (const item of items) {
      const fits = !words || text(item).toLocaleLowerCase().includes(words);
      item.classList.toggle("unmatched", !fits);
      found += fits ? 1 : 0;
    }
    input.dispatchEvent(new CustomEvent("searched", { detail: words }));
    count.value = words ? `${found} of ${items.length}` : "";
  });
  return [label, input];
}

for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const titles = [...table.tHead.rows[0].cells];
  const shown = Number(table.dataset.shown || 0);
  let isOpen = shown === 0 || body.rows.length <= shown;
  const hide = () => [...body.rows].forEach((row, i) => row.classList.toggle("more", !isOpen && i >= shown));
  titles.forEach((title, column) => {
    if (body.rows.length < 2 || !title.textContent || title.classList.contains("chart")) return;
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
      hide();
    });
  });
  let button = null;
  if (!isOpen) {
    button = document.createElement("button");
    button.type = "button";
    button.className = "all";
    button.textContent = `Show all ${body.rows.length} rows`;
    button.addEventListener("click", () => {
      isOpen = true;
      hide();
      button.remove();
      table.parentElement.focus();
    });
    table.parentElement.after(button);
    hide();
  }
  if (body.rows.length >= FIND_FROM) {
    const [label, input] = finder([...body.rows], "a row", (row) => row.cells[0].textContent);
    input.addEventListener("searched", (event) => table.classList.toggle("searched", event.detail !== ""));
    table.parentElement.before(label);
  }
}
for (const list of document.querySelectorAll("[data-find]")) {
  const items = [...list.querySelectorAll("[data-name]")];
  if (items.length < FIND_FROM) continue;
  const [label, input] = finder(items, list.dataset.find, (item) => item.dataset.name);
  const closed = [...list.querySelectorAll("details")];
  input.addEventListener("searched", (event) => closed.forEach((each) => (each.open = event.detail !== "")));
  list.prepend(label);
}

// What is closed is printed, too.
let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  opened.forEach((each) => (each.open = true));
});
addEventListener("afterprint", () => opened.forEach((each) => (each.open = false)));
