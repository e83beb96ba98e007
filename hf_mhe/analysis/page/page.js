for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const text = head.classList.contains("text");
      const first = text ? "ascending" : "descending";
      const other = text ? "descending" : "ascending";
      const order = head.getAttribute("aria-sort") === first ? other : first;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) => {
        const left = value(a), right = value(b);
        if (left === "" || right === "") return (left === "") - (right === "");
        return sign * (text ? left.localeCompare(right, undefined, { numeric: true }) : left - right);
      });
      body.append(...rows);
    });
  });
}
for (const search of document.querySelectorAll("input[type=search]")) {
  const body = document.getElementById(search.dataset.table).tBodies[0];
  search.addEventListener("input", () => {
    const wanted = search.value.toLowerCase();
    // By what names a row and what it is, not by the explanation that is folded in it.
    const named = (row) => [...row.cells].filter((cell) => cell.classList.contains("text")).map((cell) => cell.dataset.value);
    for (const row of body.rows) row.hidden = !named(row).join("\n").toLowerCase().includes(wanted);
  });
}
