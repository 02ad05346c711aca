"use strict";
// Tables sort by a click on a column's name; searchable ones hide the rows that lack the words typed.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const text = (row, column) => row.cells[column].textContent.trim();
  const number = (value) => (/^[+-]?[\d,]*\.?\d/.test(value) ? parseFloat(value.replace(/,/g, "")) : NaN);
  Array.from(table.tHead.rows[0].cells).forEach((head, column) => {
    if (!head.textContent.trim() || rows.length < 2) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const filled = rows.map((row) => text(row, column)).filter(Boolean);
      const numeric = filled.length > 0 && filled.every((value) => !isNaN(number(value)));
      const compare = (a, b) => {
        const [x, y] = [text(a, column), text(b, column)];
        if (!x || !y) return !x - !y; // empty cells last, whichever way
        return (down ? -1 : 1) * (numeric ? number(x) - number(y) : x.localeCompare(y));
      };
      body.append(...rows.slice().sort(compare));
    });
  });
  const search = table.closest("figure").querySelector("input[type=search]");
  if (!search) continue;
  const line = search.closest("p");
  const said = line.querySelector("output");
  line.hidden = false;
  search.addEventListener("input", () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const content = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => content.includes(word));
      shown += !row.hidden;
    }
    said.textContent = `${shown} of ${rows.length} rows`;
  });
}
