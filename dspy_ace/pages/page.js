"use strict";
(() => {
  // Tables: a column's title sorts by it, again the other way; what has no number stays last.
  const sort = (head) => {
    const table = head.closest("table");
    const body = table.tBodies[0];
    const column = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    const value = (row) => {
      const found = row.cells[column].textContent.replaceAll("$", "").match(/^[+-]?\d[\d,]*(\.\d+)?(?=[\s[]|$)/);
      return found ? Number(found[0].replaceAll(",", "")) : null;
    };
    const numbers = [...body.rows].some((row) => value(row) !== null);
    const text = (row) => row.cells[column].textContent;
    const compare = (a, b) => {
      if (!numbers) return text(a).localeCompare(text(b)) * (down ? -1 : 1);
      const [x, y] = [value(a), value(b)];
      if (x === null || y === null) return (x === null) - (y === null);
      return down ? y - x : x - y;
    };
    for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...[...body.rows].sort(compare));
  };
  for (const button of document.querySelectorAll("button.sort")) {
    button.addEventListener("click", () => sort(button.closest("th")));
  }

  // Prompts: two of them as a line diff; the longest common subsequence between equal ends.
  const LARGEST = 2.5e7; // cells of the table of lengths; beyond it the lines between equal ends are shown as replaced
  const steps = (a, b) => {
    let start = 0;
    while (start < a.length && start < b.length && a[start] === b[start]) start++;
    let end = 0;
    while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    const [x, y] = [a.slice(start, a.length - end), b.slice(start, b.length - end)];
    const same = (lines) => lines.map((line) => ["same", line]);
    return [...same(a.slice(0, start)), ...middle(x, y), ...same(a.slice(a.length - end))];
  };
  const middle = (x, y) => {
    const out = [];
    let [i, j] = [0, 0];
    if (x.length * y.length <= LARGEST) {
      const width = y.length + 1;
      const length = new Uint16Array((x.length + 1) * width); // below LARGEST no length exceeds 5000
      for (let p = x.length - 1; p >= 0; p--) {
        for (let q = y.length - 1; q >= 0; q--) {
          const at = p * width + q;
          length[at] = x[p] === y[q] ? length[at + width + 1] + 1 : Math.max(length[at + width], length[at + 1]);
        }
      }
      while (i < x.length && j < y.length) {
        if (x[i] === y[j]) {
          out.push(["same", x[i++]]);
          j++;
        } else if (length[(i + 1) * width + j] >= length[i * width + j + 1]) out.push(["removed", x[i++]]);
        else out.push(["added", y[j++]]);
      }
    }
    for (; i < x.length; i++) out.push(["removed", x[i]]);
    for (; j < y.length; j++) out.push(["added", y[j]]);
    return out;
  };

  const element = (tag, text, kind) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  };
  const SIGN = { same: "  ", added: "+ ", removed: "− " };
  const AROUND = 3; // unchanged lines shown around a change
  const view = (parts) => {
    const box = element("div", "", "diff");
    const near = parts.map(() => false);
    parts.forEach(([kind], at) => {
      if (kind !== "same") near.fill(true, Math.max(0, at - AROUND), at + AROUND + 1);
    });
    for (let at = 0; at < parts.length; ) {
      if (near[at]) {
        box.append(element("div", SIGN[parts[at][0]] + parts[at][1], parts[at][0]));
        at++;
        continue;
      }
      let until = at;
      while (until < parts.length && !near[until]) until++;
      const hidden = parts.slice(at, until);
      const button = element("button", `… ${hidden.length} unchanged line${hidden.length === 1 ? "" : "s"}`);
      button.type = "button";
      button.addEventListener("click", () => button.replaceWith(...hidden.map(([, l]) => element("div", "  " + l, "same"))));
      box.append(button);
      at = until;
    }
    return box;
  };

  const form = document.getElementById("compare");
  if (!form) return;
  const cells = [...document.querySelectorAll("details.prompt")].map(
    (cell) => new Map([...cell.querySelectorAll("pre")].map((pre) => [pre.dataset.predictor, pre.textContent])),
  );
  const [from, to] = [document.getElementById("from"), document.getElementById("to")];
  const show = () => {
    const [a, b] = [cells[from.value], cells[to.value]];
    const shown = [];
    for (const predictor of new Set([...a.keys(), ...b.keys()])) {
      const lines = (prompts) => (prompts.has(predictor) ? prompts.get(predictor).split("\n") : []);
      const parts = steps(lines(a), lines(b));
      const count = (kind) => parts.filter(([k]) => k === kind).length;
      const changed = count("added") + count("removed");
      const title = changed ? `${count("added")} lines added, ${count("removed")} removed` : "no difference";
      shown.push(element("h4", `${predictor}: ${title}`), view(parts));
    }
    document.getElementById("difference").replaceChildren(...shown);
  };
  for (const select of [from, to]) select.addEventListener("change", show);
  form.hidden = false;
  show();
})();
