// Sorts a table by the column whose heading is pressed: numbers by value, the largest first; text by the alphabet.
document.querySelectorAll("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const keyOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const rows = [...body.rows];
      const keys = new Map(rows.map((row) => [row, keyOf(row, column)]));
      const isNumeric = heading.dataset.kind === "number";
      const before = heading.getAttribute("aria-sort");
      const descending = before === "none" ? isNumeric : before === "ascending";
      const compare = (a, b) => {
        const [x, y] = [keys.get(a), keys.get(b)];
        if (!isNumeric) return x.localeCompare(y) * (descending ? -1 : 1);
        if (x === "" || y === "") return (x === "") - (y === "");  // what has no number is last, always
        return (Number(x) - Number(y)) * (descending ? -1 : 1);
      };
      body.append(...rows.sort(compare));
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    });
  });
});
